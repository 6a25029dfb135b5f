"""Which model classes the installed transformers has, read from its files: importing it would take seconds."""

from __future__ import annotations

import re
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from typing import TypeGuard


def is_name(text: object) -> TypeGuard[str]:
    """Whether this may stand in code as a name: what a config.json says is a stranger's."""
    return isinstance(text, str) and text.isascii() and text.isidentifier() and not iskeyword(text)


def transformers_has(name: str) -> bool:
    """Whether the installed transformers defines a model class of that name; where none is installed, that is
    assumed."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return True
    models = Path(spec.submodule_search_locations[0]) / "models"
    auto = models / "auto" / "modeling_auto.py"
    if auto.is_file() and f'"{name}"' in auto.read_text(encoding="utf-8"):
        return True
    defined = re.compile(rf"^class {re.escape(name)}\b".encode(), re.MULTILINE)
    return any(defined.search(path.read_bytes()) for path in models.glob("*/modeling_*.py"))
