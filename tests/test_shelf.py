"""Where tests stand: in the folder of the wing they test, and what they share in `kit`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ailora_tools

TESTS, PACKAGE = Path(__file__).parent, Path(ailora_tools.__file__).parent
BESIDE_THE_WINGS = {"kit", "models", "documents", "examples", "faults", "trainers", "versions"}
FILES = sorted(TESTS.rglob("*.py"))


def folders(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir() and path.name != "__pycache__"}


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_what_tests_share_lies_in_the_kit(path: Path) -> None:
    for name in imported(path):
        for part in name.split("."):
            assert not part.startswith(("test_", "conftest")), f"imports {name}"


def test_folders_mirror_the_package() -> None:
    assert folders(TESTS) - BESIDE_THE_WINGS <= folders(PACKAGE)
