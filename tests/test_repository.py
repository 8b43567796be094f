"""Rules of the repository that reviewers should not have to remember."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ensemw2s import __version__
from ensemw2s.settings import describe_fields, format_help, format_markdown

ROOT = Path(__file__).resolve().parent.parent
TEXT_SUFFIXES = (
    "",
    ".cfg",
    ".html",
    ".jinja",
    ".json",
    ".md",
    ".py",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    ".sh",
)
EXPECTED = (
    ".ci/run",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "configs/demo.yaml",
    "constraints.txt",
    "docs/configuration.md",
)
SKIPPED = ("build", "dist", "node_modules", "runs")


def text_files() -> Iterator[Path]:
    """Files that are, or would be, committed and hold text."""
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if not (name.startswith(".") and name not in (".ci", ".github"))
            and not (here == ROOT and name in SKIPPED)
            and name != "__pycache__"
            and not name.endswith(".egg-info")
        ]
        yield from (here / name for name in sorted(names) if Path(name).suffix in TEXT_SUFFIXES)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> list[Requirement]:
    """All of pyproject.toml but the project's own extras, which are listed there themselves."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in table["optional-dependencies"].values() for line in lines]
    found = [Requirement(line) for line in [*table["dependencies"], *extras]]
    return [r for r in found if r.name != table["name"]]


class TestFiles:
    @pytest.mark.parametrize("name", EXPECTED)
    def test_exists(self, name: str) -> None:
        assert (ROOT / name).is_file()

    def test_no_paths_of_somebodys_machine(self) -> None:
        # Written in pieces, so that this file passes its own test.
        pattern = re.compile(
            r"(?<![\w.$}])/(?:" + "|".join(["ho" + "me/", "ro" + "ot/", "Us" + "ers/", "tm" + "p/"]) + ")"
        )
        found = [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for path in text_files()
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            if pattern.search(line)
        ]
        assert found == []

    def test_no_addresses_of_package_registries(self) -> None:
        names = (
            "py" + "pi.org",
            "python" + "hosted",
            "npm" + "js.",
            "index-" + "url",
            "find-" + "links",
            "file:" + "//",
        )
        found = [
            f"{path.relative_to(ROOT)} has {name}"
            for path in text_files()
            for name in names
            if name in path.read_text(encoding="utf-8")
        ]
        assert found == []

    def test_files_are_found(self) -> None:
        assert sum(1 for _ in text_files()) > 50


class TestVersions:
    def test_every_pin_is_exact_and_without_a_local_label(self) -> None:
        assert len(pins()) > 100
        assert [
            name for name, version in pins().items() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)
        ] == []

    def test_every_requirement_is_pinned_to_a_version_that_it_allows(self) -> None:
        pinned = {canonicalize_name(name): version for name, version in pins().items()}
        wrong = [
            str(requirement)
            for requirement in requirements()
            if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
        ]
        assert wrong == []

    def test_every_requirement_has_a_lower_bound(self) -> None:
        assert [str(r) for r in requirements() if not any(s.operator == ">=" for s in r.specifier)] == []

    def test_the_changelog_knows_this_version(self) -> None:
        assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()

    def test_the_pins_are_what_is_installed(self) -> None:
        """Numbers in the documentation hold for the pinned versions."""
        wrong = []
        for name, version in pins().items():
            try:
                installed = metadata.version(name).partition("+")[0]
            except metadata.PackageNotFoundError:
                continue
            if installed != version:
                wrong.append(f"{name} {installed} is installed, {version} is pinned")
        assert wrong == []


class TestTests:
    @staticmethod
    def idle(source: str) -> list[str]:
        """Names of tests that cannot fail: no assert, no raises, no checked process, no helper with one."""
        found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
        functions = {function.name: function for function in found}

        def checks(function: ast.FunctionDef, seen: frozenset[str]) -> bool:
            for node in ast.walk(function):
                if isinstance(node, ast.Assert):
                    return True
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func).split(".")[-1]
                    checked = any(ast.unparse(word) == "check=True" for word in node.keywords)
                    if checked or name in ("raises", "warns", "fail") or name.startswith("assert_"):
                        return True
                    # Playwright's expect(...).to_...()
                    if name.startswith("to_") and "expect(" in ast.unparse(node.func):
                        return True
                    if name in functions and name not in seen and checks(functions[name], seen | {name}):
                        return True
            return False

        tests = [function for function in found if function.name.startswith("test_")]
        return [test.name for test in tests if not checks(test, frozenset({test.name}))]

    def test_every_test_can_fail(self) -> None:
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        assert {path.name: idle for path in files if (idle := self.idle(path.read_text()))} == {}

    def test_one_that_cannot_is_found(self) -> None:
        source = "def h(x):\n    assert x\ndef test_a():\n    print(1)\ndef test_b():\n    h(2)\n"
        assert self.idle(source) == ["test_a"]


class TestPreflight:
    @staticmethod
    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(ROOT / ".ci" / "preflight")],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_a_machine_that_has_everything(self) -> None:
        answer = self.run(PYTHON=sys.executable)
        assert (answer.returncode, answer.stderr) == (0, "")

    def test_all_that_is_missing_is_said_at_once(self) -> None:
        answer = self.run(PYTHON="no-such-python", CXX="no-such-compiler")
        assert answer.returncode == 1
        missing = [line for line in answer.stderr.splitlines() if line.startswith("missing:")]
        assert missing == ["missing: no-such-python", "missing: a C++ compiler (no-such-compiler)"]

    def test_a_python_without_what_is_needed(self, tmp_path: Path) -> None:
        old = tmp_path / "python"
        old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.1 || exit 1\n')
        old.chmod(0o755)
        answer = self.run(PYTHON=str(old))
        assert answer.returncode == 1
        assert "Python 3.11 or later" in answer.stderr
        assert "Python 3.8.1" in answer.stderr
        assert "venv module" in answer.stderr
        assert "Python.h" in answer.stderr


class TestReference:
    def test_every_field_is_described(self) -> None:
        assert [doc.path for doc in describe_fields() if not doc.description.strip()] == []

    def test_the_page_is_up_to_date(self) -> None:
        message = "run `make docs`"
        assert (ROOT / "docs" / "configuration.md").read_text() == format_markdown(), message

    def test_help_names_every_field_with_its_meaning(self) -> None:
        # Lines are filled to the width: compare words.
        words = " ".join(format_help(100).split())
        missing = [
            doc.path
            for doc in describe_fields()
            if f" {doc.path} " not in words or " ".join(doc.description.split()) not in words
        ]
        assert missing == []

    def test_help_fits_a_narrow_terminal(self) -> None:
        prose = [
            line
            for line in format_help(60).splitlines()
            if " " in line.strip() and "ensemw2s run" not in line
        ]
        assert [line for line in prose if len(line) > 60] == []

    def test_what_is_allowed_is_told(self) -> None:
        docs = {(doc.path, doc.only_for): doc for doc in describe_fields()}
        rounds = docs["boosting.rounds", ()]
        assert (rounds.type, rounds.default, rounds.allowed) == ("whole number", "3", ">= 1")
        unit = docs["boosting.unit", ()]
        assert (unit.default, unit.allowed) == ('"token"', "token, window, sample, choice")
        assert docs["data.pool.limit", ("file", "hub", "builtin")].type == "whole number or null"
        assert docs["data.pool.kind", ()].default == "required"
        assert docs["weak.models.N.path", ()].default == "required"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy (the checkout gets no build products) and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("ensemw2s", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
class TestWheel:
    """The package as it is installed without a checkout."""

    def test_it_holds_every_module_and_data_file(self, unpacked: Path) -> None:
        wanted = {
            path.relative_to(ROOT)
            for path in (ROOT / "ensemw2s").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert wanted - {path.relative_to(unpacked) for path in unpacked.rglob("*")} == set()
        assert any(path.parts[:3] == ("ensemw2s", "runs", "templates") for path in wanted)

    def test_it_finds_its_own_deepspeed_files(self, unpacked: Path, tmp_path: Path) -> None:
        code = (
            "import json; from ensemw2s.settings import load_deepspeed; "
            "from ensemw2s.settings.deepspeed_file import builtin_folder; "
            "print(json.dumps([str(builtin_folder()), load_deepspeed('zero2'), load_deepspeed('zero3')]))"
        )
        answer = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(unpacked)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        folder, zero2, zero3 = json.loads(answer.stdout)
        assert folder == str(unpacked / "ensemw2s" / "deepspeed_configs")
        for name, data in (("zero2", zero2), ("zero3", zero3)):
            assert data == json.loads((ROOT / "configs" / "deepspeed" / f"{name}.json").read_text())
