"""The command line. Nothing heavy is imported before a command needs it; exit codes: :mod:`ensemw2s.console`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from ensemw2s import __version__
from ensemw2s.console import exit_code, print_finished, print_results
from ensemw2s.errors import UserError

EPILOG = "Any configuration field: key=value or --key value, for example boosting.rounds=4 or --seed 1."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command not in ("run", "rate", "doctor", "sweep", "compare", "serve"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return exit_code(lambda: int(arguments.function(arguments, rest)))


def build_parser() -> argparse.ArgumentParser:
    """The argument parser; configuration overrides are left over for :mod:`ensemw2s.settings`."""
    parser = argparse.ArgumentParser(
        prog="ensemw2s",
        description="Weak language models, boosted and voting token by token, teach a strong one.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ensemw2s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="the whole pipeline; continues a run that was stopped", add_help=False, allow_abbrev=False
    )
    run.add_argument("config", nargs="?", help="YAML file")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="stages with estimated tokens, seconds, memory and disk; writes nothing",
    )
    run.add_argument("-h", "--help", action="store_true", help="this help, with every configuration field")
    run.set_defaults(function=_run)
    _take_overrides(run, EPILOG)

    label = commands.add_parser(
        "label", help="label new questions with a trained ensemble", allow_abbrev=False
    )
    label.add_argument("run", help="run directory, or its URI")
    label.add_argument(
        "--input", required=True, help="JSONL, CSV or Parquet with question and, for multiple choice, choices"
    )
    label.add_argument("--output", required=True, help="file to write: .jsonl, .csv or .parquet")
    label.set_defaults(function=_label)

    rate = commands.add_parser(
        "rate", help="rate a labelled data set by difficulty, for easy-to-hard splits", allow_abbrev=False
    )
    rate.add_argument("config", help="YAML file: data.pool is rated by weak.models")
    rate.add_argument(
        "--output",
        required=True,
        help="file to write: .parquet, .jsonl or .csv; the same command goes on after an interruption",
    )
    rate.add_argument(
        "--method",
        choices=("folds", "members", "irt"),
        default="folds",
        help="folds: out-of-fold confidence of the weak models (default); members: disagreement of a run's members; irt: item "
        "response theory over the folds' answers or a table",
    )
    rate.add_argument("--input", help="JSONL, CSV or Parquet to rate in place of data.pool")
    rate.add_argument("--folds", type=int, help="parts, each rated by models of the others (default 5)")
    rate.add_argument(
        "--repeats", type=int, help="trainings of each weak model in each fold, by seed (default 1)"
    )
    rate.add_argument("--run", help="run directory (members)")
    rate.add_argument("--responses", help="table of samples (id) by models, 1 right, 0 wrong (irt)")
    rate.add_argument(
        "--irt", choices=("rasch", "2pl", "auto"), help="model (irt); default auto: 2pl from 30 models on"
    )
    rate.set_defaults(function=_rate)
    _take_overrides(rate, EPILOG)

    generate = commands.add_parser("generate", help="one answer, and who voted for what", allow_abbrev=False)
    generate.add_argument("run", help="run directory, or its URI")
    generate.add_argument(
        "--prompt", required=True, help="a question; it is put into the run's prompt template"
    )
    generate.add_argument("--raw", action="store_true", help="use the text as the whole prompt")
    generate.add_argument("--max-new-tokens", type=int, default=None, help="longest answer")
    generate.set_defaults(function=_generate)

    export = commands.add_parser(
        "export", help="the ensemble as one Hugging Face model: a folder to load anywhere", allow_abbrev=False
    )
    export.add_argument("run", help="run directory, or its URI")
    export.add_argument("--output", required=True, help="folder to write; must be new or empty")
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default=None,
        help="number format of the weights; default: members as they are, adapters added into float32 bases",
    )
    export.add_argument(
        "--link", action="store_true", help="hard links instead of copies, where the file system can"
    )
    export.set_defaults(function=_export)

    report = commands.add_parser(
        "report", help="tables and figures again from stored results", allow_abbrev=False
    )
    report.add_argument("run", help="run directory, or its URI")
    report.set_defaults(function=_report)

    status = commands.add_parser(
        "status",
        help="what a run has committed, what is under way, what comes next; reads only",
        allow_abbrev=False,
    )
    status.add_argument("run", help="run directory, or its URI")
    status.add_argument("--json", action="store_true", help="one JSON object, for programs")
    status.set_defaults(function=_status)

    serve = commands.add_parser(
        "serve", help="answer OpenAI's clients with a trained ensemble and its student", allow_abbrev=False
    )
    serve.add_argument("run", help="run directory, or its URI")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1); others need --api-keys")
    serve.add_argument("--port", type=int, help="port (default 8000)")
    serve.add_argument("--api-keys", help="file with one API key a line; may change while the server runs")
    serve.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="ray",
        help="ray: Ray Serve, a process for each member (default); local: one process without Ray",
    )
    serve.add_argument(
        "--model",
        action="append",
        dest="models",
        choices=("ensemble", "student"),
        help="serve this one only (may be repeated); default: all that the run has",
    )
    serve.add_argument(
        "--update",
        action="store_true",
        help="put this run in the place of the one that the cluster serves, without losing a request, and return",
    )
    serve.set_defaults(function=_serve)
    _take_overrides(serve, "Limits, for example max_queue=10 quorum=2 (docs/serving.md).")

    sweep = commands.add_parser(
        "sweep", help="one experiment with many settings, chosen on validation (Ray Tune)", allow_abbrev=False
    )
    sweep.add_argument("config", help="YAML file of the sweep, for example configs/sweep.yaml")
    sweep.set_defaults(function=_sweep)
    _take_overrides(sweep, f"{EPILOG} Fields of the sweep, too: samples=20")

    compare = commands.add_parser(
        "compare", help="several ways to make the ensemble, several seeds, one table", allow_abbrev=False
    )
    compare.add_argument("config", help="YAML file of the comparison, for example configs/compare.yaml")
    compare.add_argument(
        "--dry-run", action="store_true", help="check every variant and estimate what it adds; writes nothing"
    )
    compare.set_defaults(function=_compare)
    _take_overrides(
        compare,
        "Fields of the experiment and of the comparison: key=value or --key value, for example boosting.rounds=4 or seeds=[0,1,2].",
    )

    doctor = commands.add_parser("doctor", help="what is there, and what is wrong", allow_abbrev=False)
    doctor.add_argument("config", nargs="?", help="YAML file whose models and data are checked, too")
    doctor.add_argument("--deep", action="store_true", help="also start a small local Ray")
    doctor.set_defaults(function=_doctor)
    _take_overrides(doctor, EPILOG)
    return parser


def _take_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Say that a command takes overrides. They are what its parser does not know: as a positional argument of any number they would
    be cut in two at the first option, and not in the same way by all versions of Python."""
    parser.epilog = text
    # Newer versions colour it.
    usage = re.sub(r"\x1b\[[0-9;]*m", "", parser.format_usage())
    parser.usage = f"{usage.removeprefix('usage: ').strip()} [key=value ...]"


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    if arguments.help:
        from ensemw2s.settings import format_help

        print("usage: ensemw2s run CONFIG [key=value ...] [--key value ...] [--dry-run]\n")
        print("Runs the whole pipeline; the same command continues a run that was stopped.")
        print(EPILOG + "\n")
        print(format_help())
        return 0
    if arguments.config is None:
        raise UserError(
            "run needs a configuration file: ensemw2s run CONFIG (ensemw2s run --help explains every field)"
        )
    from ensemw2s import api

    if arguments.dry_run:
        return _dry_run(arguments.config, overrides)
    from ensemw2s.progress import make_progress

    with make_progress() as progress:
        result = api.run(arguments.config, *overrides, progress=progress)
    if not result.ran:
        print_finished(result.place)
    print_results(result.run_dir, result.place)
    return 0


def _dry_run(config_path: str, overrides: list[str]) -> int:
    from ensemw2s.engine.estimate import estimate, measure_flops, peak_disk
    from ensemw2s.engine.prepare import check_directory, prepare
    from ensemw2s.models.device import pick_device
    from ensemw2s.settings import load_config

    config = load_config(config_path, overrides)
    store = check_directory(config)
    prepared = prepare(config)
    device = pick_device(config.runtime.device)
    lines = estimate(prepared, measure_flops(device))
    print(f"{'stage':<22}{'tokens':>12}{'seconds':>10}{'memory':>12}{'disk':>12}")
    for line in lines:
        print(
            f"{line.stage:<22}{line.tokens:>12,}{line.seconds:>10.0f}{_gib(line.memory):>12}{_gib(line.disk):>12}"
        )
    total = sum(line.tokens for line in lines)
    memory = max(line.memory for line in lines)
    seconds = sum(line.seconds for line in lines)
    print(
        f"{'in all':<22}{total:>12,}{seconds:>10.0f}{_gib(memory):>12}{_gib(peak_disk(lines, prepared)):>12}"
    )
    print(
        f"\nsplits: {', '.join(f'{n} {len(s)}' for n, s in prepared.splits.samples.items())}; truncated: {sum(prepared.truncated.values())}"
    )
    for warning in prepared.splits.report.warnings:
        print(f"warning: {warning}")
    print(f"run directory: {store.place} (nothing was written)")
    print(
        f"Estimates for one {device}, to about a factor of two; memory is weights, gradients and optimizer, without activations."
    )
    return 0


def _gib(n: int) -> str:
    return f"{n / 2**30:.2f} GiB"


def _label(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s import api
    from ensemw2s.progress import make_progress

    with make_progress() as progress:
        ensemble = api.load_ensemble(arguments.run, progress)
        n = ensemble.label_file(arguments.input, arguments.output)
    print(f"{n} labels by {len(ensemble.members)} members: {arguments.output}")
    return 0


def _rate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import numpy as np

    from ensemw2s import api
    from ensemw2s.progress import make_progress

    names = ("method", "input", "folds", "repeats", "run", "responses", "irt")
    options = {name: getattr(arguments, name) for name in names}
    with make_progress() as progress:
        rated = api.rate(arguments.config, *overrides, output=arguments.output, progress=progress, **options)
    low, middle, high = np.quantile(rated.difficulty, [0.0, 0.5, 1.0])
    print(
        f"{len(rated.difficulty)} samples rated by {arguments.method}, difficulty {low:.3f} to {high:.3f}, median {middle:.3f}: "
        f"{rated.path}"
    )
    return 0


def _generate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s import api

    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {arguments.max_new_tokens} is not allowed: give 1 or more")
    ensemble = api.load_ensemble(arguments.run)
    answer = ensemble.generate(arguments.prompt, max_new_tokens=arguments.max_new_tokens, raw=arguments.raw)
    print(answer.text)
    shares = ensemble.alphas / ensemble.alphas.sum()
    names = [f"{name} ({share:.0%})" for name, share in zip(ensemble.members, shares, strict=True)]
    print(f"\nconfidence {answer.confidence:.3f}\n")
    rows = [["token", "voted", *names]]
    for token, probability, tops in zip(
        answer.tokens, answer.probabilities, answer.member_tokens, strict=True
    ):
        rows.append([ensemble.token_text(t) for t in (token, *tops)])
        rows[-1].insert(1, f"{probability:.3f}")
    widths = [max(len(r[c]) for r in rows) for c in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _export(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s import api
    from ensemw2s.progress import make_progress

    with make_progress() as progress:
        folder = api.export(
            arguments.run, arguments.output, dtype=arguments.dtype, link=arguments.link, progress=progress
        )
    print(f"{folder}: call ensemw2s.hf.register(), then AutoModelForCausalLM.from_pretrained loads it")
    return 0


def _report(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s.api import read_results
    from ensemw2s.runs.reading import read_run
    from ensemw2s.runs.report import write_report

    store = read_run(arguments.run, "splits", "results")
    read_results(store.folder)
    write_report(store.folder)
    if store.mirror is not None:
        store.mirror.push_loose()
    print_results(store.folder, store.place)
    return 0


def _status(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s.runs.status import read_status, render_json, render_status

    status = read_status(arguments.run)
    print(render_json(status) if arguments.json else render_status(status))
    return 0


def _serve(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s.serving.command import serve

    return serve(arguments, overrides)


def _sweep(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s.sweeps.command import sweep

    return sweep(arguments.config, overrides)


def _compare(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s.comparisons.command import compare

    return compare(arguments.config, overrides, dry_run=arguments.dry_run)


def _doctor(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from ensemw2s.doctor import diagnose

    return diagnose(arguments.config, overrides, deep=arguments.deep)


if __name__ == "__main__":
    sys.exit(main())
