"""What every step of a run needs: the configuration, the run directory, the splits, and somewhere to report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ensemw2s.config import DataConfig, ExperimentConfig, ModelConfig
from ensemw2s.engine.encoded import EncodedSplits, few_shot_prefix
from ensemw2s.engine.tasks import ModelRef, ProgressEvent
from ensemw2s.runs.store import RunStore, StageRecord

FEW_SHOT = "strong-few-shot"


@dataclass
class RunContext:
    """One run, as its coordinator sees it.

    Attributes:
        config: with absolute paths.
        store: the run directory.
        report: receives progress.
        committed: receives each stage when it is committed.
    """

    config: ExperimentConfig
    store: RunStore
    report: Callable[[ProgressEvent], None]
    warnings: list[str] = field(default_factory=list)
    committed: Callable[[StageRecord], None] = lambda record: None

    @property
    def run_dir(self) -> Path:
        """The run directory, absolute."""
        return self.store.folder

    @cached_property
    def splits(self) -> EncodedSplits:
        """The splits in the weak models' tokens, or with ``vote.alignment bytes`` in what they have in common."""
        return self.weak_splits(self.config.data)

    def weak_splits(self, data: DataConfig) -> EncodedSplits:
        """The same with another prompt."""
        models = self.config.weak.models
        if self.config.vote.alignment == "tokens":
            return self._encoded(models[0], data)
        from ensemw2s.engine.aligned import AlignedSplits

        named = [(self._tokenizer(model), model.display_name) for model in models]
        return AlignedSplits(self.run_dir, data, named, models[0].head)

    @cached_property
    def strong_splits(self) -> EncodedSplits:
        """The splits in the strong model's tokens."""
        return self._encoded(self.config.strong.model, self.config.data)

    @cached_property
    def few_shot_splits(self) -> EncodedSplits:
        """The same with solved easy questions before each."""
        prefix = few_shot_prefix(self.config, self.strong_splits["easy_train"].samples)
        return self._encoded(self.config.strong.model, self.config.data, prefix)

    def _encoded(self, model: ModelConfig, data: DataConfig, prefix: str = "") -> EncodedSplits:
        return EncodedSplits(self.run_dir, data, self._tokenizer(model), model.head, prefix)

    def _tokenizer(self, model: ModelConfig) -> Any:
        from ensemw2s.engine.bases import converted
        from ensemw2s.models.loading import load_tokenizer

        return load_tokenizer(converted(self.run_dir, model))

    def side_splits(self, system: str) -> EncodedSplits:
        """The splits in the tokens of a system: weak-* and member-* are weak, all others strong."""
        if system == FEW_SHOT:
            return self.few_shot_splits
        return self.splits if system.startswith(("weak", "member")) else self.strong_splits

    def forward_flops(self, ref: ModelRef) -> float:
        """Estimated FLOPs of one token through a model of this run."""
        from ensemw2s.engine.bases import forward_flops

        model = self.config.weak.models[ref.index] if ref.side == "weak" else self.config.strong.model
        return forward_flops(model)

    @cached_property
    def multiple_choice(self) -> bool:
        """Whether the run's samples have choices."""
        return self.splits["easy_train"].multiple_choice

    @property
    def test_splits(self) -> list[str]:
        """test and the further test sets."""
        return [n for n in self.splits.names() if n not in ("easy_train", "easy_val", "hard_train")]

    def say(self, text: str, metrics: dict[str, float] | None = None) -> None:
        """A line for the log, with its numbers by name."""
        self.report(ProgressEvent(text, 0, 0, metrics=metrics or {}))

    def commit(self, name: str, info: dict[str, Any] | None = None) -> StageRecord:
        """Commit a stage and say so."""
        record = self.store.commit(name, info)
        self.committed(record)
        self.report(ProgressEvent(f"committed {name}", 1, 1))
        return record
