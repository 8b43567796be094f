"""Labels of a whole file, a chunk at a time: interrupted, the same call goes on; memory holds one chunk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.data.samples import Sample
from ensemw2s.data.streaming import SampleFile
from ensemw2s.data.writing import check_output, write_tables
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.runs.store import write_atomic

CHUNK = 1024
"""samples; enough for full batches of like lengths"""
#: Label models without truth: fitted to all samples that they label, so that these cannot be divided.
WHOLE = ("dawid_skene", "glad")
_ABOUT = "about.json"


def label_file(
    ctx: RunContext,
    ensemble: Ensemble,
    label: Callable[[list[Sample]], pa.Table],
    samples: SampleFile,
    output: Path,
    chunk: int = CHUNK,
) -> int:
    """Label a file and write the labels, whole or not at all; returns how many.

    Finished chunks lie in a folder beside the output until the output is written. They are taken again by the same
    ensemble on the same file, and thrown away else.

    Args:
        ctx: the run of the ensemble.
        ensemble: the members that vote.
        label: labels a list of samples.
        samples: the file.
        output: .jsonl, .csv or .parquet.
        chunk: samples at a time.

    Raises:
        DataError: the output cannot be written there.
    """
    check_output(output)
    rule = ctx.config.vote.label_model
    whole = samples.multiple_choice and len(ensemble.refs) > 1 and rule in WHOLE
    size = samples.n if whole else chunk
    folder = output.with_name(f".{output.name}.parts")
    _claim(folder, _about(ctx, ensemble, samples, size))
    paths = []
    for i, part in enumerate(samples.chunks(size)):
        path = folder / f"{i:06d}.parquet"
        if not path.is_file():
            table = label(part)
            draft = path.with_suffix(".draft")
            pq.write_table(table, draft, compression="zstd")
            draft.replace(path)
            ctx.say(f"labelled {i * size + len(part)} of {samples.n}")
        else:
            ctx.say(f"labels of samples {i * size + 1} to {i * size + len(part)} are there already")
        paths.append(path)
    write_tables(_read(paths), output)
    shutil.rmtree(folder)
    return samples.n


def _about(ctx: RunContext, ensemble: Ensemble, samples: SampleFile, size: int) -> str:
    return json.dumps(
        {
            "run": ctx.config.identity_hash(),
            "members": [
                [system, alpha]
                for system, alpha in zip(ensemble.systems, ensemble.alphas.tolist(), strict=True)
            ],
            "input": samples.digest,
            "chunk": size,
        },
        indent=1,
    )


def _claim(folder: Path, about: str) -> None:
    path = folder / _ABOUT
    if not path.is_file() or path.read_text(encoding="utf-8") != about:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_atomic(path, about)


def _read(paths: list[Path]) -> Iterator[pa.Table]:
    for path in paths:
        yield pq.read_table(path)
