"""`ensemw2s compare`: every variant with every seed, one after another, then the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemw2s.comparisons.config import Comparison, load_comparison
from ensemw2s.config import identity_differences
from ensemw2s.errors import ResourceError, RunDirectoryError, UserError
from ensemw2s.runs.store import directory_errors, write_atomic

CLAIM = "runs.json"


def compare(path: str, overrides: Sequence[str]) -> int:
    """Run or continue a comparison and print its tables; returns the exit code: 1 where a variant gave no result."""
    comparison = load_comparison(path, overrides)
    claim(comparison)
    results, folders, failed = run_all(comparison)
    if not results:
        print("no variant finished: the lines above say why", file=sys.stderr)
        return 1
    from ensemw2s.comparisons.report import NOTES, render_table, write_comparison
    from ensemw2s.comparisons.table import build_table

    first = next(iter(results.values()))[0]
    splits = [s for s, info in first["splits"].items() if s not in ("easy_train", "easy_val", "hard_train")]
    tables = [build_table(comparison, results, folders, split) for split in splits]
    write_comparison(comparison, tables, failed)
    for table in tables:
        print(render_table(table, len(comparison.config.seeds)) + "\n")
    print("\n".join(NOTES))
    for variant, reason in failed.items():
        print(f"left out: {variant}: {reason}")
    print(f"\nreport: {comparison.folder / 'comparison.html'} (also comparison.json)")
    return 1 if failed else 0


def run_all(
    comparison: Comparison,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[Path]], dict[str, str]]:
    """Run what is not finished.

    Returns:
        results.json and run directory of each variant's runs in the order of the seeds, and for a variant whose settings
        give no result (training diverges, no member is better than the prior) the reason instead.
    """
    from ensemw2s import api
    from ensemw2s.progress import make_progress

    results: dict[str, list[dict[str, Any]]] = {}
    folders: dict[str, list[Path]] = {}
    failed: dict[str, str] = {}
    total = len(comparison.config.variants) * len(comparison.config.seeds)
    number = 0
    for variant in comparison.config.variants:
        for seed in comparison.config.seeds:
            number += 1
            if variant in failed:
                continue
            print(f"run {number} of {total}: {variant}, seed {seed}", file=sys.stderr, flush=True)
            try:
                with make_progress() as progress:
                    result = api.run(comparison.run(variant, seed), progress=progress)
            except (ResourceError, RunDirectoryError):
                raise
            except UserError as error:
                failed[variant] = f"seed {seed}: {error}"
                results.pop(variant, None)
                folders.pop(variant, None)
                print(f"{variant}, seed {seed}: {error}", file=sys.stderr, flush=True)
                continue
            results.setdefault(variant, []).append(result.results)
            folders.setdefault(variant, []).append(result.run_dir)
    return results, folders, failed


def claim(comparison: Comparison) -> None:
    """Make the comparison's folder, or see that it holds this comparison, perhaps with other variants and seeds.

    Variants and seeds may be added: what is there is kept. A variant may not change its meaning under its name.

    Raises:
        RunDirectoryError: the folder holds something else, or another experiment.
    """
    path = comparison.folder / CLAIM
    ours = {"base": comparison.base.identity(), "variants": comparison.config.variants}
    if not path.is_file():
        if comparison.folder.exists() and any(comparison.folder.iterdir()):
            raise RunDirectoryError(
                f"{comparison.folder} is not empty and holds no comparison: choose another name, or remove it"
            )
        with directory_errors(comparison.folder):
            comparison.folder.mkdir(parents=True, exist_ok=True)
    else:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        differences = identity_differences(theirs["base"], json.loads(json.dumps(ours["base"])))
        old, new = list(theirs["variants"].items()), list(comparison.config.variants.items())
        if old[: len(new)] != new[: len(old)]:
            differences.append("variants in another order, or with other fields: add new ones at the end")
        if differences:
            raise RunDirectoryError(
                f"{comparison.folder} holds another comparison ({'; '.join(differences[:3])}): choose another name, or undo the change "
                "to continue it"
            )
        if len(old) > len(new):
            return
    write_atomic(path, json.dumps(ours, indent=1) + "\n")
