"""The splits of a run as token ids, for one side's tokenizer; every process makes its own from the run directory."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from ensemw2s.config import DataConfig, ExperimentConfig
from ensemw2s.core.draws import RoundDraw
from ensemw2s.data.encoding import EncodedSample, Encoder, target_ids
from ensemw2s.data.samples import Sample, samples_from_table
from ensemw2s.engine.tasks import TokenScores
from ensemw2s.errors import ConfigError

Head = Literal["lm", "classifier"]
NO_TEXT = "head classifier chooses a class and writes no text: label questions with `ensemw2s label`"


class EncodedSplit:
    """One split, encoded.

    What is weighted, missed and voted on are its tokens; where members have different tokenizers it is what all of them can
    say (:class:`ensemw2s.engine.aligned.AlignedSplit`). ``of_member``, ``target_scores``, ``choice_scores``, ``draw_of`` and
    ``first_tokens`` go from the one to the other; here nothing differs.

    Attributes:
        samples: n samples.
        encoded: n encoded samples, in the same order.
    """

    def __init__(self, samples: list[Sample], encoder: Encoder, eos_id: int) -> None:
        self.samples = samples
        self.encoded: list[EncodedSample] = encoder.encode(samples)
        # A class is one target and ends by itself.
        self._eos_id = eos_id if encoder.classes is None else None

    def of_member(self, index: int) -> EncodedSplit:
        """The split in the tokens of weak model `index`."""
        return self

    def target_scores(self, index: int, scores: TokenScores) -> TokenScores:
        """The scores of weak model `index` for its own target tokens, as scores of this split's targets."""
        return scores

    def choice_scores(self, index: int, scores: TokenScores) -> TokenScores:
        """The same for the tokens of the choices."""
        return scores

    def draw_of(self, index: int, draw: RoundDraw) -> RoundDraw:
        """A draw over this split's targets, as one over the target tokens of weak model `index`."""
        return draw

    def first_tokens(self, sample: int, start: int, stop: int) -> tuple[int, int]:
        """Targets [start, stop) of a sample, as target tokens of the first weak model."""
        return start, stop

    @cached_property
    def targets(self) -> list[np.ndarray]:
        """Per sample the target tokens: the answer's, then end-of-text; its class, for a classifier; int32 (m_i,)."""
        return [target_ids(e, self._eos_id) for e in self.encoded]

    @cached_property
    def target_offsets(self) -> np.ndarray:
        """(n + 1,) int64: where each sample's target tokens start."""
        return offsets_of([len(t) for t in self.targets])

    @cached_property
    def choice_offsets(self) -> np.ndarray:
        """(n + 1,) int64: where each sample's choices start."""
        return offsets_of([len(e.continuations) for e in self.encoded])

    @cached_property
    def choice_token_offsets(self) -> np.ndarray:
        """(total choices + 1,) int64: where each choice's tokens start."""
        return offsets_of([len(c) for e in self.encoded for c in e.continuations])

    @cached_property
    def choice_bytes(self) -> np.ndarray:
        """(total choices,) int64: UTF-8 bytes of each choice."""
        return np.array([b for e in self.encoded for b in e.n_bytes], dtype=np.int64)

    @cached_property
    def answers(self) -> np.ndarray:
        """(n,) int64 index of the right choice; multiple choice only."""
        return np.array([int(s.answer) for s in self.samples], dtype=np.int64)  # type: ignore[arg-type]

    @property
    def multiple_choice(self) -> bool:
        """Whether the samples have choices."""
        return self.samples[0].choices is not None


def offsets_of(lengths: list[int]) -> np.ndarray:
    """``[2, 3]`` -> ``[0, 2, 5]``, int64."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


class EncodedSplits:
    """The splits in ``run_dir/splits``, encoded when first asked for.

    Args:
        run_dir: the run directory.
        data: how texts become tokens.
        tokenizer: of the model that reads them.
        head: of that model; a classifier's answers are classes.
        prefix: text before every prompt.
    """

    def __init__(
        self, run_dir: Path, data: DataConfig, tokenizer: Any, head: Head = "lm", prefix: str = ""
    ) -> None:
        self._run_dir = run_dir
        self.tokenizer = tokenizer
        classes = classes_of(head, self._samples("easy_train")) if head == "classifier" else None
        self.encoder = make_encoder(data, tokenizer, prefix, classes)
        self._cache: dict[str, EncodedSplit] = {}

    @property
    def n_classes(self) -> int | None:
        """Outputs of the model's head; None where they are tokens."""
        return None if self.encoder.classes is None else len(self.encoder.classes)

    def _samples(self, name: str) -> list[Sample]:
        return samples_from_table(pq.read_table(self._run_dir / "splits" / f"{name}.parquet"))

    def names(self) -> list[str]:
        """The splits, easy_train, easy_val, hard_train, test first."""
        first = ["easy_train", "easy_val", "hard_train", "test"]
        found = sorted(p.stem for p in (self._run_dir / "splits").glob("*.parquet"))
        return first + [n for n in found if n not in first]

    def __getitem__(self, name: str) -> EncodedSplit:
        if name not in self._cache:
            self._cache[name] = self.encode(self._samples(name))
        return self._cache[name]

    def encode(self, samples: list[Sample]) -> EncodedSplit:
        """Encode other samples the same way."""
        return EncodedSplit(samples, self.encoder, int(self.tokenizer.eos_token_id))


def classes_of(head: Head, samples: list[Sample]) -> tuple[str, ...] | None:
    """The classes of a classifier: the choices of the first sample, which all others must have, too.

    Raises:
        ConfigError: it has none.
    """
    if head == "lm":
        return None
    if samples[0].choices is None:
        raise ConfigError("head classifier needs data with choices, the same for every sample: use head lm")
    return samples[0].choices


def make_encoder(
    data: DataConfig, tokenizer: Any, prefix: str = "", classes: tuple[str, ...] | None = None
) -> Encoder:
    """The encoder that a configuration asks for; a text that stands before every prompt has room beside ``max_length``."""
    return Encoder(
        tokenizer,
        prompt=data.prompt,
        max_length=data.max_length + prefix_length(tokenizer, prefix),
        too_long=data.too_long,
        add_bos=data.add_bos,
        prefix=prefix,
        classes=classes,
    )


def prefix_length(tokenizer: Any, prefix: str) -> int:
    """Tokens of a text that stands before prompts."""
    return len(tokenizer(prefix, add_special_tokens=False, verbose=False)["input_ids"]) if prefix else 0


def few_shot_prefix(config: ExperimentConfig, easy: list[Sample]) -> str:
    """Solved easy questions, each in the run's own prompt, that stand before every question; the same for all."""
    shots = min(config.evaluation.shots, len(easy))
    chosen = np.random.default_rng([config.seed, 2]).choice(len(easy), size=shots, replace=False)
    return "".join(
        f"{config.data.prompt.replace('{question}', easy[int(i)].question)} {easy[int(i)].answer_text}\n\n"
        for i in chosen
    )


def with_labels(samples: list[Sample], labels: tuple[int | str | None, ...]) -> list[Sample]:
    """The samples with other answers; those without a label are left out."""
    if len(samples) != len(labels):
        raise ValueError(f"{len(samples)} samples, {len(labels)} labels")
    return [replace(s, answer=label) for s, label in zip(samples, labels, strict=True) if label is not None]
