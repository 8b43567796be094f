"""What the models of each fold are trained on and rate; checked before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ensemw2s.config import ExperimentConfig
from ensemw2s.core.difficulty import assign_folds
from ensemw2s.data.samples import Sample, question_key, samples_to_table
from ensemw2s.engine.rating.options import RatingOptions, check_irt
from ensemw2s.errors import ConfigError, ModelError
from ensemw2s.runs.store import RunStore

SPLIT = "easy_train"
"""under which name the samples lie in the work folder: supervisors train members on it"""


@dataclass(frozen=True)
class FoldJob:
    """One training: weak model `index` on all folds but `fold`, with the seed of `repeat`."""

    fold: int
    index: int
    repeat: int

    @property
    def stage(self) -> str:
        """Name of the stage that commits its answers."""
        return f"fold-{self.fold:02d}-{self.index}-{self.repeat}"


@dataclass(frozen=True)
class FoldPlan:
    """The work of a rating.

    Attributes:
        config: with absolute paths.
        options: how to rate.
        samples: n samples.
        groups: a key for each; the same question (with other choices, say) has the same.
        fold: (n,) int64 in 0..n_folds - 1; a group is never divided.
        identity: all that the models' answers depend on, as plain JSON data.
    """

    config: ExperimentConfig
    options: RatingOptions
    samples: list[Sample]
    groups: tuple[str, ...]
    fold: np.ndarray
    identity: dict[str, Any]

    @property
    def ids(self) -> list[str]:
        """Ids of the samples."""
        return [s.id for s in self.samples]

    @cached_property
    def jobs(self) -> list[FoldJob]:
        """Every training, fold after fold."""
        models, repeats = range(len(self.config.weak.models)), range(self.options.n_repeats)
        return [
            FoldJob(f, m, r) for f in range(self.options.n_folds) for m in models for r in repeats
        ]  # fmt: skip

    @property
    def identity_hash(self) -> str:
        """SHA-256 of the identity, hexadecimal."""
        return hash_of(self.identity)


def hash_of(plain: Any) -> str:
    """SHA-256 of plain JSON data, hexadecimal."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def question_groups(samples: Sequence[Sample]) -> tuple[str, ...]:
    """For each sample the smallest id of those that ask the same question."""
    first: dict[str, str] = {}
    for sample in samples:
        key = question_key(sample)
        first[key] = min(sample.id, first.get(key, sample.id))
    return tuple(first[question_key(sample)] for sample in samples)


def plan_folds(config: ExperimentConfig, options: RatingOptions, samples: list[Sample]) -> FoldPlan:
    """Check models and data, and divide the data; writes nothing.

    Raises:
        UserError: one of its kinds, with a line that says what to do.
    """
    from ensemw2s.engine.keys import pretrained_key
    from ensemw2s.settings import absolute_paths

    models = config.weak.models
    if options.method == "irt":
        check_irt(
            len(models) * options.n_repeats, options, "raise --repeats, give several weak.models, or a table"
        )
    groups = question_groups(samples)
    try:
        fold = assign_folds([s.id for s in samples], options.n_folds, seed=config.seed, groups=groups)
    except ValueError as error:
        raise ConfigError(
            f"{options.n_folds} folds of {len(set(groups))} different questions: "
            + ("lower --folds" if len(set(groups)) > 1 else "give more data")
        ) from error
    absolute = absolute_paths(config)
    _check_models(absolute, samples)
    content = [[s.id, s.question, list(s.choices or ()), s.answer] for s in samples]
    identity = {
        "work": "answers of models to held-out samples, 1",
        "weak": config.weak.model_dump(mode="json"),
        "weights": [pretrained_key(model) for model in absolute.weak.models],
        "encoding": config.data.model_dump(
            mode="json", include={"prompt", "max_length", "too_long", "add_bos"}
        ),
        "choice_score": config.vote.choice_score,
        "seed": config.seed,
        "folds": options.n_folds,
        "repeats": options.n_repeats,
        "samples": hash_of(content),
    }
    return FoldPlan(absolute, options, samples, groups, fold, identity)


def _check_models(config: ExperimentConfig, samples: list[Sample]) -> None:
    from ensemw2s.data.encoding import tokenizer_fingerprint
    from ensemw2s.engine.aligned import Readers
    from ensemw2s.engine.encoded import classes_of, make_encoder
    from ensemw2s.engine.teaching import check_member_loss, check_outputs
    from ensemw2s.models.device import pick_device
    from ensemw2s.models.facts import inspect_model
    from ensemw2s.models.loading import load_tokenizer
    from ensemw2s.training.deepspeed import choose_accelerator

    check_member_loss(config.weak.training)
    choose_accelerator(pick_device(config.runtime.device))
    prints: dict[str, str] = {}
    named = []
    for model in config.weak.models:
        facts = inspect_model(model)
        if facts.max_positions and facts.max_positions < config.data.max_length:
            raise ConfigError(
                f"data.max_length {config.data.max_length} is more than the {facts.max_positions} positions of {model.display_name}: "
                "lower data.max_length"
            )
        tokenizer = load_tokenizer(model)
        prints.setdefault(tokenizer_fingerprint(tokenizer), model.display_name)
        named.append((tokenizer, model.display_name))
        classes = classes_of(model.head, samples)
        check_outputs("weak", config.weak.training, model, facts, tokenizer, classes)
        make_encoder(config.data, tokenizer, classes=classes).encode(samples)
    if len(prints) > 1 and config.vote.alignment == "tokens":
        raise ModelError(
            f"the weak models {' and '.join(prints.values())} have different tokenizers: rate with models of one family, or set "
            "vote.alignment bytes"
        )
    if config.vote.alignment == "bytes":
        Readers(config.data, named, classes_of(config.weak.models[0].head, samples)).encode(samples)


def work_folder(output: Path) -> Path:
    """Where finished folds lie until the output is written."""
    output = output.resolve()
    return output.with_name(f".{output.name}.rating")


def begin_work(plan: FoldPlan, store: RunStore) -> None:
    """Begin or go on in a locked work folder; what was done for other data or settings is thrown away."""
    import shutil

    from ensemw2s.engine.bases import convert_bases

    if store.exists and store.identity() != plan.identity:
        for path in store.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "run.lock":
                path.unlink()
    store.create(plan.identity, plan.identity_hash)
    # Only the weak side takes part; converting bases also looks at the strong one.
    strong = plan.config.strong.model_copy(update={"model": plan.config.weak.models[0]})
    convert_bases(plan.config.model_copy(update={"strong": strong}), store)
    if store.done("samples") is None:
        folder = store.begin("samples") / "splits"
        folder.mkdir()
        pq.write_table(samples_to_table(plan.samples), folder / f"{SPLIT}.parquet", compression="zstd")
        store.commit("samples")
