"""The plan of the house: imports go down, heavy libraries stay in their rooms, files and functions stay short."""

from __future__ import annotations

import ast
import importlib
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import ailora_tools

PACKAGE = Path(ailora_tools.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room may import from the floors below its own.
FLOORS = [
    {"errors", "progress"},
    {
        "methods",
        "ranks",
        "rounding",
        "linalg.components",
        "checkpoint.transfer",
        "metrics.definitions",
        "metrics.paired",
    },
    {
        "linalg.exact",
        "checkpoint.header",
        "checkpoint.files",
        "checkpoint.hub",
        "metrics.noise",
        "metrics.tail",
        "metrics.elements",
        "metrics.heads",
    },
    {"checkpoint.ahead", "checkpoint.remote", "linalg.lowrank", "linalg.principal", "linalg.minor", "metrics.spectral"},
    {"checkpoint.source", "linalg.starts"},
    {"checkpoint.index", "checkpoint.stream"},
    {"targets.layouts", "output.spans", "linalg.spectrum"},
    {"targets.rows", "targets.quantisation"},
    {"targets.projections", "targets.fused"},
    {"targets.architectures"},
    {"targets.matching", "output.atomic", "output.base", "output.adapter", "output.manifest", "output.analysis"},
    {"motion", "targets.module_names", "targets.module_tree", "output.audit", "output.package", "metrics.change"},
    {"targets.plan", "decompose", "recombine", "measure", "adapters", "exports"},
    {"dequantise", "output.card"},
    {"parts", "allocation", "report.words", "settings"},
    {"operation", "comparison"},
    {"surgery", "gradients", "training", "in_memory"},
    {"report.figures", "report.parts", "report.changes"},
    {"report.maps", "report.motions"},
    {"report.findings"},
    {"report.sections"},
    {"report.page"},
    {"verbs.announce"},
    {
        "verbs.inspect",
        "verbs.initialize",
        "verbs.verify",
        "verbs.analyze",
        "verbs.report",
        "verbs.convert",
        "verbs.merge",
        "verbs.export",
        "verbs.bitfit",
    },
    {"terminal"},
    {"console"},
    {"options"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN = {
    "rich": {"console", "terminal"}, "click": {"cli", "options"}, "huggingface_hub": {"checkpoint.hub"},
    "plotly": set(),
}  # fmt: skip
NO_TORCH = (
    "errors", "progress", "methods", "motion", "exports", "adapters", "ranks", "settings", "operation", "comparison",
    "allocation", "terminal", "console", "options", "cli", "targets", "output", "report", "verbs.in", "verbs.analyze",
    "verbs.report", "verbs.announce", "verbs.convert", "verbs.merge", "verbs.export", "verbs.bitfit",
)  # fmt: skip


def room(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path, typing_too: bool) -> Iterator[str]:
    """Absolute names of the modules that a file imports when it is loaded."""
    here = ["ailora_tools", *room(path).split(".")]
    for node in _loaded(ast.parse(path.read_text()), typing_too):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                below = PACKAGE.parent.joinpath(*stem.split("."), alias.name)
                inner = below.with_suffix(".py").exists() or below.is_dir()
                yield f"{stem}.{alias.name}" if inner else stem


def _loaded(tree: ast.Module, typing_too: bool) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from node.body if typing_too else []
        else:
            yield node


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    documented = ast.get_docstring(function) is not None
    first = function.body[1] if documented and len(function.body) > 1 else function.body[0]
    return (function.end_lineno or 0) - first.lineno + 2


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=room)
def test_imports_go_down(path: Path) -> None:
    for name in imports(path, typing_too=False):
        if name == "ailora_tools":
            pytest.fail(f"{room(path)} imports the package root")
        if name.startswith("ailora_tools.") and (other := name.removeprefix("ailora_tools.")) in FLOOR:
            assert FLOOR[other] < FLOOR[room(path)], f"{room(path)} imports {other}"


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES if path.name != "__init__.py"} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=room)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imports(path, typing_too=True):
        library = name.split(".")[0]
        assert room(path) in ONLY_IN.get(library, {room(path)}), f"{room(path)} imports {library}"
        if library == "torch" and room(path).startswith(NO_TORCH):
            assert library not in [other.split(".")[0] for other in imports(path, typing_too=False)]


@pytest.mark.parametrize("path", FILES, ids=room)
def test_files_are_short_and_have_no_junk_drawer(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350
    assert path.stem not in ("utils", "common", "helpers", "misc")


def test_functions_are_short() -> None:
    lengths = sorted(length(function) for path in FILES for function in functions(path))
    assert statistics.median(lengths) <= 12
    assert lengths[int(0.9 * len(lengths))] <= 35
    assert lengths[-1] <= 70


@pytest.mark.parametrize("path", FILES, ids=room)
def test_public_things_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{room(path)}.{node.name}"


def test_public_names_resolve_and_are_listed() -> None:
    assert ailora_tools.__all__ == sorted(ailora_tools._HOMES)
    for name, home in ailora_tools._HOMES.items():
        assert getattr(ailora_tools, name) is getattr(importlib.import_module(home, "ailora_tools"), name)
    with pytest.raises(AttributeError):
        ailora_tools.nonsense  # noqa: B018
