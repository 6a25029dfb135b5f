"""The plan of the house: imports go down, heavy libraries stay in their rooms, files and functions stay short."""

from __future__ import annotations

import ast
import importlib
import statistics
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ailora_tools

PACKAGE = Path(ailora_tools.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Each wing may import from those before it.
ORDER = (
    "version", "errors", "progress", "team", "methods", "checkpoint", "linalg", "matrices", "metrics", "targets",
    "adapters",
    "output", "surgery", "report", "proof", "analysis", "extraction", "training", "display", "verbs", "cli", "__main__",
)  # fmt: skip
ONLY_IN: dict[str, str | tuple[str, ...]] = {
    "rich": ("cli.", "display."),
    "tqdm": "display.",
    "click": "cli.",
    "huggingface_hub": ("checkpoint.hub", "checkpoint.upload"),
    "plotly": "report.pieces",
    "pandas": "verbs.result",
    "msgspec": "checkpoint.gate",
    "yaml": "output.cards.front",
}
# Loaded by `--help`, by decisions and by rendering: torch comes with the first weight that is read.
NO_TORCH = (
    "version", "errors", "progress", "team.", "methods", "metrics.motion", "matrices.heads", "matrices.layouts",
    "matrices.quantisation", "targets.", "adapters.", "output.", "surgery.settings", "surgery.operation", "report.",
    "analysis.tuned", "analysis.allocation", "display.", "verbs.", "cli.",
)  # fmt: skip


def room(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path, *, at_load: bool = False) -> Iterator[str]:
    """Absolute names of the modules that a file imports: anywhere, or when it is loaded."""
    here = ["ailora_tools", *room(path).split(".")]
    tree = ast.parse(path.read_text())
    for node in _at_load(tree) if at_load else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = ".".join([*here[: -node.level], node.module or ""][0 if node.level else -1 :]).strip(".")
            for alias in node.names:
                below = PACKAGE.parent.joinpath(*stem.split("."), alias.name)
                inner = below.with_suffix(".py").exists() or below.is_dir()
                yield f"{stem}.{alias.name}" if inner else stem


def _at_load(tree: ast.Module) -> Iterator[ast.stmt]:
    return (node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)))


def own(names: Iterable[str]) -> Iterator[str]:
    """Those of the package, without its name."""
    return (name.removeprefix("ailora_tools.") for name in names if name.split(".")[0] == "ailora_tools")


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    documented = ast.get_docstring(function) is not None
    first = function.body[1] if documented and len(function.body) > 1 else function.body[0]
    return (function.end_lineno or 0) - first.lineno + 2


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=room)
def test_every_wing_uses_only_those_before_it(path: Path) -> None:
    here = room(path).split(".")[0]
    for name in own(imports(path)):
        there = name.split(".")[0]
        assert there == here or ORDER.index(there) < ORDER.index(here), f"{room(path)} imports {name}"


def test_every_wing_has_its_place() -> None:
    assert {room(path).split(".")[0] for path in FILES} - {"__init__"} == set(ORDER)


def test_no_circle_of_files() -> None:
    tuple(TopologicalSorter({room(path): set(own(imports(path, at_load=True))) for path in FILES}).static_order())


@pytest.mark.parametrize("path", FILES, ids=room)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        assert room(path).startswith(ONLY_IN.get(library, "")), f"{room(path)} imports {library}"
    if room(path).startswith(NO_TORCH):
        assert "torch" not in {name.split(".")[0] for name in imports(path, at_load=True)}


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
