"""Everything that can be wrong with what the user gave is found here, before anything is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ensemw2s.config import ExperimentConfig, completed_identity, identity_differences
from ensemw2s.config.base import check_gpus
from ensemw2s.config.uris import inside, is_uri
from ensemw2s.data.encoding import tokenizer_fingerprint
from ensemw2s.data.samples import samples_to_table
from ensemw2s.data.splits import Splits, make_splits
from ensemw2s.engine.aligned import Readers
from ensemw2s.engine.encoded import EncodedSplit, classes_of, few_shot_prefix, make_encoder, prefix_length
from ensemw2s.engine.rating.output import rated_sources
from ensemw2s.engine.teaching import check_outputs, check_teaching
from ensemw2s.engine.trackers import check_trackers
from ensemw2s.errors import ConfigError, ModelError, ResourceError, RunDirectoryError
from ensemw2s.runs.mirror import Storage
from ensemw2s.runs.store import RunStore, run_store, write_atomic
from ensemw2s.settings import absolute_paths, dump_config
from ensemw2s.training.deepspeed import choose_accelerator


@dataclass(frozen=True)
class Prepared:
    """A run that can begin.

    Attributes:
        config: as the user gave it.
        absolute: the same with absolute local paths, for other processes.
        run_dir: absolute path of the run directory, or of this machine's copy of it.
        splits: the checked samples.
        encoded: the splits in weak tokens.
        facts: what each weak model and the strong model is.
        truncated: samples whose prompt is cut, by split.
        storage: where the run is, if it is not a folder.
    """

    config: ExperimentConfig
    absolute: ExperimentConfig
    run_dir: Path
    splits: Splits
    encoded: dict[str, EncodedSplit]
    facts: dict[str, Any]
    truncated: dict[str, int]
    storage: Storage | None = None


def run_place(config: ExperimentConfig) -> Path | Storage:
    """Where the run lives: an absolute folder, or storage with a URI."""
    if is_uri(config.runs_dir):
        return Storage(inside(config.runs_dir, config.name), config.runtime.work_dir)
    return Path(config.runs_dir).expanduser().resolve() / config.name


def run_directory(config: ExperimentConfig) -> Path:
    """The run directory, or this machine's copy of it, absolute."""
    place = run_place(config)
    return place if isinstance(place, Path) else place.folder()


def check_directory(config: ExperimentConfig) -> RunStore:
    """The run directory, when it is free or holds this very run.

    Raises:
        RunDirectoryError: it holds a run of another configuration (the differences are named), or something else; or its storage
            cannot be reached.
    """
    store = run_store(run_place(absolute_paths(config)))
    store.pull()
    folder = store.folder
    if store.exists:
        differences = identity_differences(completed_identity(store.identity()), config.identity())
        if differences:
            shown = "; ".join(differences[:5]) + (
                f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
            )
            raise RunDirectoryError(
                f"{store.place} holds a run of another configuration ({shown}): choose another name=..., or undo the change to continue it"
            )
    elif (
        store.mirror is None
        and folder.exists()
        and (not folder.is_dir() or any(p.name != "run.lock" for p in folder.iterdir()))
    ):
        raise RunDirectoryError(
            f"{folder} exists and holds no run: choose another name=... or runs_dir=..., or remove it"
        )
    return store


def _check_settings(config: ExperimentConfig) -> None:
    """What a new run may not have, and older ones may, which are still read.

    Raises:
        ConfigError: with one line.
    """
    boosting = config.boosting
    if (boosting.method, boosting.reweight, boosting.error_on) == ("adaboost", "loss", "out_of_bag"):
        raise ConfigError(
            "boosting.error_on out_of_bag needs members that are not shown all samples, and with reweight loss each sees all: use easy_val "
            "or train, or reweight token_bootstrap or sample_bootstrap"
        )
    try:
        check_gpus("runtime.gpus_per_supervisor", config.runtime.gpus_per_supervisor)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def prepare(config: ExperimentConfig) -> Prepared:
    """Load and check data and models; writes nothing.

    Raises:
        UserError: one of its kinds, with a line that says what to do.
    """
    from ensemw2s.models.device import pick_device
    from ensemw2s.models.facts import inspect_model
    from ensemw2s.models.loading import load_tokenizer

    check_trackers(config)
    _check_settings(config)
    choose_accelerator(pick_device(config.runtime.device))
    absolute = absolute_paths(config)
    models = [*absolute.weak.models, absolute.strong.model]
    facts = {m.display_name: inspect_model(m) for m in models}
    splits = make_splits(absolute.data)
    if config.boosting.unit == "choice" and splits.samples["easy_train"][0].choices is None:
        raise ConfigError(
            "boosting.unit choice needs multiple-choice data: this data has no choices; use token, window or sample"
        )
    if splits.samples["easy_train"][0].choices is None and (
        config.vote.label_model not in ("weighted", "uniform") or config.vote.calibrate
    ):
        raise ConfigError(
            f"vote.label_model {config.vote.label_model} with calibrate {str(config.vote.calibrate).lower()} needs multiple-choice data: "
            "this data has no choices; use weighted or uniform, without calibrate"
        )
    if splits.samples["easy_train"][0].choices is None and config.labels.keep_by == "agreement":
        raise ConfigError(
            "labels.keep_by agreement needs multiple-choice data: this data has no choices; use confidence or all"
        )
    if config.strong.preference is not None:
        from ensemw2s.training.preference import check_installed

        if splits.samples["easy_train"][0].choices is None:
            raise ConfigError("strong.preference compares choices, and this data has none: leave it out")
        check_installed()
    combine, weak = config.vote.combine, config.weak.models
    if combine not in ("predictions", "weights") and weak[0].lora is None:
        raise ConfigError(
            f"vote.combine {combine} merges adapters, and weak.models has none: give lora, or use weights"
        )
    if combine != "predictions" and len(weak) > 1:
        raise ConfigError(
            f"vote.combine {combine} makes one of members of one model, and weak.models has {len(weak)}: use predictions"
        )
    tokenizers = [load_tokenizer(m) for m in models]
    prints = [tokenizer_fingerprint(t) for t in tokenizers]
    if config.vote.alignment == "tokens":
        _check_one_tokenizer(config, prints)
    check_teaching(
        config,
        multiple_choice=splits.samples["easy_train"][0].choices is not None,
        one_tokenizer=prints[-1] == prints[0],
    )
    trained = [("weak", config.weak.training)] * (len(models) - 1) + [("strong", config.strong.training)]
    for (side, training), model, tokenizer in zip(trained, models, tokenizers, strict=True):
        classes = classes_of(model.head, splits.samples["easy_train"])
        check_outputs(side, training, model, facts[model.display_name], tokenizer, classes)
    encoded: dict[str, EncodedSplit] = {}
    truncated: dict[str, set[str]] = {}
    # Weak and strong must see the same samples: all tokenizers are asked, nothing is ever left out.
    easy, heads = splits.samples["easy_train"], (absolute.weak.models[0].head, absolute.strong.model.head)
    sides = {(own, heads[0]): t for own, t in zip(prints[:-1], tokenizers, strict=False)}
    sides.setdefault((prints[-1], heads[1]), tokenizers[-1])
    for (own, head), tokenizer in sides.items():
        encoder = make_encoder(absolute.data, tokenizer, classes=classes_of(head, easy))
        for name, samples in splits.samples.items():
            truncated.setdefault(name, set()).update(encoder.too_long_ids(samples))
            split = EncodedSplit(samples, encoder, int(tokenizer.eos_token_id))
            if (own, head) == (prints[0], heads[0]):
                encoded[name] = split
    if config.vote.alignment == "bytes":
        named = [(t, m.display_name) for t, m in zip(tokenizers, absolute.weak.models, strict=False)]
        readers = Readers(absolute.data, named, classes_of(heads[0], easy))
        encoded = {name: readers.encode(samples) for name, samples in splits.samples.items()}
    limits = [
        (f.max_positions, n)
        for n, f in facts.items()
        if f.max_positions and f.max_positions < config.data.max_length
    ]
    if limits:
        raise ConfigError(
            f"data.max_length {config.data.max_length} is more than the {limits[0][0]} positions of {limits[0][1]}: lower data.max_length"
        )
    if "few_shot" in config.evaluation.baselines:
        longest = facts[absolute.strong.model.display_name].max_positions
        prefix = few_shot_prefix(config, splits.samples["easy_train"])
        needed = config.data.max_length + prefix_length(tokenizers[-1], prefix)
        if longest and needed > longest:
            raise ConfigError(
                f"evaluation.shots {config.evaluation.shots} makes prompts of up to {needed} tokens, and "
                f"{absolute.strong.model.display_name} has {longest} positions: lower evaluation.shots or data.max_length"
            )
    counts = {name: len(ids) for name, ids in truncated.items()}
    place = run_place(absolute)
    storage = None if isinstance(place, Path) else place
    return Prepared(config, absolute, run_directory(absolute), splits, encoded, facts, counts, storage)


def _check_one_tokenizer(config: ExperimentConfig, prints: list[str]) -> None:
    """Raise ModelError where members that vote token by token would read different tokens."""
    models = config.weak.models
    for model, own in zip(models, prints, strict=False):
        if own != prints[0]:
            raise ModelError(
                f"{model.display_name} has another tokenizer than {models[0].display_name}: members that vote token by token must share "
                "one; choose weak.models of one family, or set vote.alignment bytes"
            )


def begin_run(prepared: Prepared, store: RunStore, needed_bytes: int) -> None:
    """Make the run directory, save the configuration and commit the splits; does nothing where that is done.

    Raises:
        RunDirectoryError: the directory cannot be written.
        ResourceError: the disk does not hold the run.
    """
    # Before the lock, which is a file: a run that is refused leaves nothing behind.
    if not store.exists:
        check_disk(
            prepared.run_dir, needed_bytes, "runs_dir" if prepared.storage is None else "runtime.work_dir"
        )
    store.lock()
    try:
        _begin(prepared, store)
    finally:
        store.unlock()


def _begin(prepared: Prepared, store: RunStore) -> None:
    config = prepared.config
    if store.exists:
        store.event("continued", committed=len(store.stages()))
    else:
        store.create(config.identity(), config.identity_hash())
    write_atomic(store.folder / "config.yaml", dump_config(config))
    from ensemw2s.engine.bases import convert_bases

    convert_bases(prepared.absolute, store)
    if store.done("splits") is not None:
        return
    staging = store.begin("splits")
    (staging / "splits").mkdir()
    for name, samples in prepared.splits.samples.items():
        pq.write_table(samples_to_table(samples), staging / "splits" / f"{name}.parquet", compression="zstd")
    report = prepared.splits.report
    info = {
        "roles": prepared.splits.roles,
        "n": {n: len(s) for n, s in prepared.splits.samples.items()},
        "truncated": prepared.truncated,
        "duplicates_dropped": sum(report.duplicates_dropped.values()),
        "duplicates_dropped_by_split": report.duplicates_dropped,
        "same_question_warnings": report.same_question,
        "warnings": [*report.warnings],
        "ratings": rated_sources(prepared.absolute.data),
    }
    (staging / "splits" / "check.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    store.commit("splits", info)


def check_disk(folder: Path, needed_bytes: int, field: str = "runs_dir") -> None:
    """Refuse before anything is written when the run would not fit; `field` says where the folder lies.

    Raises:
        ResourceError: less is free than the run needs.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ResourceError(
            f"the run needs about {needed_bytes / 2**30:.1f} GiB of disk and {existing} has {free / 2**30:.1f} GiB free: "
            f"free some, or choose another {field}=FOLDER"
        )
