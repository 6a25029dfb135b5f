"""ailora-result.json: what a folder of `convert`, `merge`, `export` or `bitfit` was made from, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .names import RESULT
from .spans import write_json


def write_result(tree: Path, document: Mapping[str, Any]) -> None:
    """Write it last: `files` are those that are there."""
    files = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file())
    write_json(tree / RESULT, {**document, "files": files})
