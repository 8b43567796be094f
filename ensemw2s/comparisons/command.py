"""`ensemw2s compare`: every variant with every seed, then the tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemw2s.comparisons.config import Comparison, load_comparison
from ensemw2s.comparisons.plan import check_variants
from ensemw2s.config import completed_identity, identity_differences
from ensemw2s.errors import ResourceError, RunDirectoryError, UserError
from ensemw2s.runs.store import directory_errors, write_atomic

CLAIM = "runs.json"


def compare(path: str, overrides: Sequence[str], *, dry_run: bool = False) -> int:
    """Run or continue a comparison and print its tables; returns the exit code: 1 where a variant gave no result."""
    comparison = load_comparison(path, overrides)
    if dry_run:
        return print_plan(comparison)
    check_claim(comparison)
    check_variants(comparison)
    claim(comparison)
    results, folders, failed = run_all(comparison)
    if not results:
        print("no variant finished: the lines above say why", file=sys.stderr)
        return 1
    from ensemw2s.comparisons.report import NOTES, notes, render_table, write_comparison
    from ensemw2s.comparisons.table import build_table
    from ensemw2s.comparisons.votes import vote_tables

    reference, given = next(iter(comparison.config.variants)), next(iter(results))
    if reference in failed:
        failed[reference] += (
            f"; the single model, its student and the baselines of the tables are those of {given}"
        )
    first = results[given][0]
    tests = [s for s in first["splits"] if s not in ("easy_train", "easy_val", "hard_train")]
    splits = [*tests, "easy_val"]
    tables = [build_table(comparison, results, folders, split) for split in splits]
    write_comparison(comparison, tables, vote_tables(results, tests), failed)
    for table in tables:
        print("\n".join([render_table(table, len(comparison.config.seeds)), *notes(table.split)]) + "\n")
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
    if comparison.config.runs_at_once != 1:
        from ensemw2s.comparisons.at_once import run_at_once

        left = [(v, s) for v, s in comparison.runs if not comparison.is_finished(v, s)]
        if left:
            failed = run_at_once(comparison, left, lambda line: print(line, file=sys.stderr, flush=True))
    for number, (variant, seed) in enumerate(comparison.runs, start=1):
        if variant in failed:
            continue
        print(f"run {number} of {len(comparison.runs)}: {variant}, seed {seed}", file=sys.stderr, flush=True)
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
    """Make the comparison's folder, or note the variants that were added.

    Raises:
        RunDirectoryError: see :func:`check_claim`.
    """
    if check_claim(comparison):
        with directory_errors(comparison.folder):
            comparison.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(comparison.folder / CLAIM, json.dumps(_meaning(comparison), indent=1) + "\n")


def check_claim(comparison: Comparison) -> bool:
    """See that the comparison's folder is free, or holds this comparison, perhaps with other variants and seeds.

    Variants and seeds may be added: what is there is kept. A variant may not change its meaning under its name.

    Returns:
        whether there is anything new to note in it.

    Raises:
        RunDirectoryError: the folder holds something else, or another experiment.
    """
    path = comparison.folder / CLAIM
    if not path.is_file():
        if comparison.folder.exists() and any(comparison.folder.iterdir()):
            raise RunDirectoryError(
                f"{comparison.folder} is not empty and holds no comparison: choose another name, or remove it"
            )
        return True
    ours, theirs = _meaning(comparison), json.loads(path.read_text(encoding="utf-8"))
    differences = identity_differences(
        completed_identity(theirs["base"]), json.loads(json.dumps(ours["base"]))
    )
    old, new = list(theirs["variants"].items()), list(comparison.config.variants.items())
    if old[: len(new)] != new[: len(old)]:
        differences.append("variants in another order, or with other fields: add new ones at the end")
    if differences:
        raise RunDirectoryError(
            f"{comparison.folder} holds another comparison ({'; '.join(differences[:3])}): choose another name, or undo the change "
            "to continue it"
        )
    return len(new) > len(old)


def _meaning(comparison: Comparison) -> dict[str, Any]:
    return {"base": comparison.base.identity(), "variants": comparison.config.variants}


def print_plan(comparison: Comparison) -> int:
    """Check every variant, and print what each adds for one seed."""
    from ensemw2s.comparisons.plan import plan
    from ensemw2s.engine.estimate import measure_flops
    from ensemw2s.models.device import pick_device

    check_claim(comparison)
    device = pick_device(comparison.base.runtime.device)
    rows = plan(comparison, measure_flops(device))
    width = max(len(row.name) for row in rows) + 2
    print(f"{'variant':<{width}}{'stages':>8}{'tokens':>14}{'seconds':>10}{'disk':>12}")
    for row in rows:
        print(
            f"{row.name:<{width}}{row.stages:>8}{row.tokens:>14,}{row.seconds:>10.0f}{row.disk / 2**30:>8.2f} GiB"
        )
    n = len(comparison.config.seeds)
    tokens, seconds, disk = (
        sum(getattr(row, name) for row in rows) for name in ("tokens", "seconds", "disk")
    )
    print(
        f"{f'{n} seed(s) in all':<{width}}{'':>8}{n * tokens:>14,}{n * seconds:>10.0f}{n * disk / 2**30:>8.2f} GiB"
    )
    print(f"\nfolder: {comparison.folder} (nothing was written)")
    print(
        "A stage that an earlier variant has done counts nothing. "
        f"Estimates for one {device}, to about a factor of two; disk is the weights that stay."
    )
    return 0
