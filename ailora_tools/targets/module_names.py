"""From the name of a tensor in a checkpoint to the path of its module in memory; they are not always the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ..checkpoint.index import Checkpoint
from ..matrices.quantisation import BARE
from .architectures import BODIES, BY_MODEL_TYPE
from .matching import Match
from .rows import Architecture

_LATEST_MAJOR = 5


def module_path(match: Match, row: Architecture | None, base: str, architectures: Sequence[str], major: int) -> str:
    """The module path in the class that `architectures` (of config.json) names, under that transformers major.

    A checkpoint of the bare body lacks the base prefix that its modules have in a model with a head, and the
    reverse. If no class is named, the file's own names stand.
    """
    path = match.tensor.removesuffix(".weight").removesuffix(BARE)
    if row is None:
        return path
    bare = all(_is_bare(name) for name in architectures)
    if base and architectures and not bare and match.prefix == "":
        path = f"{base}.{path}"
    for expression, replacement, first in row.renames:
        if major >= first:
            path = re.sub(expression, replacement, path)
    return path.removeprefix(f"{base}.") if base and architectures and bare else path


def module_paths(checkpoint: Checkpoint, major: int | None = None) -> dict[str, str]:
    """Module path -> name of its weight, for every weight of two dimensions."""
    kind = checkpoint.model_type
    row = BY_MODEL_TYPE.get(kind or "")
    base = row.model_types[kind] if row and kind else ""
    found = {}
    for name, stored in checkpoint.tensors.items():
        if name.endswith(".weight") and len(stored.shape) == 2:
            prefix = f"{base}." if base and name.startswith(f"{base}.") else ""
            match = Match("q", 0, "", name, prefix)
            found[module_path(match, row, base, checkpoint.architectures, major or installed_transformers_major())] = (
                name
            )
    return found


def installed_transformers() -> str:
    """Version of the transformers that is installed here; empty if there is none."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return ""


def installed_transformers_major() -> int:
    """The latest known one if none is installed."""
    found = installed_transformers()
    return int(found.split(".")[0]) if found else _LATEST_MAJOR


def _is_bare(architecture: str) -> bool:
    """BertModel and ViTModel are bodies; GPT2LMHeadModel and MarianMTModel are not."""
    return architecture in BODIES or (
        architecture.endswith("Model") and not architecture.endswith(("HeadModel", "HeadsModel", "MTModel"))
    )
