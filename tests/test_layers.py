"""The one-way order of imports, read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ensemw2s"

# From left to right; a unit imports from units to its left, and from itself.
LAYERS = (
    ("errors",),
    ("core",),
    ("config",),
    ("settings",),
    ("data", "models"),
    ("training",),
    ("runs",),
    ("engine",),
    ("hf",),
    ("cluster",),
    ("serving",),
    ("doctor", "progress"),
    ("opening", "tracking"),
    ("rating",),
    ("api",),
    ("comparisons", "sweeps"),
    ("console",),
    ("cli",),
    ("jobs",),
    ("__main__",),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
MAX_LINES = 400
HEAVY = ("datasets", "deepspeed", "matplotlib", "peft", "ray", "torch", "transformers")

MODULES = sorted(PACKAGE.rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One imported module, where, and whether that happens when the importing module is loaded."""

    module: str
    line: int
    at_load: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[Import]:
    yield from _imports(ast.parse(path.read_text()), module_name(path), path.name == "__init__.py", True)


def _imports(node: ast.AST, name: str, is_package: bool, at_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_load)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                above = name.split(".")[: len(name.split(".")) - child.level + is_package]
                base = ".".join([*above, *([child.module] if child.module else [])])
            yield Import(base, child.lineno, at_load)
            # `from ensemw2s import data` imports a module, too.
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, at_load)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _imports(child, name, is_package, at_load and not inside and not if_typing)


def unit_of(module: str) -> str | None:
    """``ensemw2s.core.voting`` -> ``core``; None for the package itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ensemw2s" and len(parts) > 1 and parts[1] in LEVEL else None


def violations(path: Path) -> list[str]:
    """Imports that run against the order."""
    own = unit_of(module_name(path))
    found = []
    for item in imports(path):
        other = unit_of(item.module)
        if own is not None and other is not None and other != own and LEVEL[other] >= LEVEL[own]:
            found.append(f"{module_name(path)}:{item.line} imports {item.module}")
    return found


def test_every_module_has_a_place() -> None:
    units = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert units - set(LEVEL) == set(), "name its layer in LAYERS"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_is_documented_and_readable_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= MAX_LINES


def test_core_is_numpy_and_the_standard_library() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "ensemw2s"}
    wrong = [
        f"{module_name(path)}:{item.line} imports {item.module}"
        for path in MODULES
        if unit_of(module_name(path)) in ("errors", "core")
        for item in imports(path)
        if item.module.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_only_cluster_and_what_is_right_of_it_knows_ray() -> None:
    wrong = [
        f"{module_name(path)}:{item.line} imports {item.module}"
        for path in MODULES
        if LEVEL.get(unit_of(module_name(path)) or "", -1) < LEVEL["cluster"]
        for item in imports(path)
        if item.module.split(".")[0] == "ray"
    ]
    assert wrong == []


def test_deepspeed_is_imported_inside_functions() -> None:
    wrong = [
        f"{module_name(path)}:{item.line}"
        for path in MODULES
        for item in imports(path)
        if item.at_load and item.module.split(".")[0] == "deepspeed"
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module",
    ["ensemw2s", "ensemw2s.cli", "ensemw2s.api", "ensemw2s.settings", "ensemw2s.doctor", "ensemw2s.hf"],
)
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & sys.modules.keys()))"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert answer.stdout.split() == []


class TestTheReaderOfImports:
    """The rules above can only fail if imports are seen."""

    @pytest.fixture
    def tree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        package = tmp_path / "ensemw2s"
        (package / "core").mkdir(parents=True)
        monkeypatch.setattr(f"{__name__}.PACKAGE", package)
        return package

    @pytest.mark.parametrize(
        "line",
        [
            "import ensemw2s.data.splits",
            "from ensemw2s.data import splits",
            "from ensemw2s import data",
            "from ..data import splits",
            "from .. import data",
            "def f():\n    from ensemw2s.data.splits import split",
            "try:\n    import ensemw2s.data\nexcept ImportError:\n    pass",
        ],
    )
    def test_an_import_to_the_right_is_found(self, tree: Path, line: str) -> None:
        path = tree / "core" / "voting.py"
        path.write_text(line + "\n")
        assert len(violations(path)) >= 1

    def test_data_and_models_are_side_by_side(self, tree: Path) -> None:
        (tree / "data").mkdir()
        path = tree / "data" / "encoding.py"
        path.write_text("import ensemw2s.core.voting\nimport ensemw2s.models.loading\n")
        assert violations(path) == ["ensemw2s.data.encoding:2 imports ensemw2s.models.loading"]

    def test_functions_are_not_load_time(self, tree: Path) -> None:
        path = tree / "core" / "voting.py"
        path.write_text("import os\ndef f():\n    import deepspeed\n")
        assert [(item.module, item.at_load) for item in imports(path)] == [("os", True), ("deepspeed", False)]
