"""From the name of a tensor in a checkpoint to the path of its module in memory; they are not always the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ..checkpoint.index import Checkpoint
from ..matrices.quantisation import BARE, logical_name
from .architectures import BODIES, BY_MODEL_TYPE, FUSED
from .matching import Match
from .rows import MLP_LAYOUTS, Architecture

_LATEST_MAJOR = 5


def module_path(match: Match, row: Architecture | None, base: str, architectures: Sequence[str], major: int) -> str:
    """The module path in the class that `architectures` (of config.json) names, under that transformers major.

    A checkpoint of the bare body lacks the base prefix that its modules have in a model with a head, and the
    reverse. If no class is named, the file's own names stand.
    """
    path = match.tensor.removesuffix(".weight").removesuffix(BARE)
    if row is None:
        return path
    bare = all(is_bare(name) for name in architectures)
    if base and architectures and not bare and match.prefix == "":
        path = f"{base}.{path}"
    path = _renamed(path, row, major)
    return path.removeprefix(f"{base}.") if base and architectures and bare else path


def _renamed(path: str, row: Architecture, major: int) -> str:
    for expression, replacement, first in row.renames:
        if major >= first:
            path = re.sub(expression, replacement, path)
    return path


def part_type(checkpoint: Checkpoint, name: str) -> str | None:
    """The model type of the part that a tensor lies in, where the model is put together from two; else the model's."""
    first = name.partition(".")[0]
    part = checkpoint.config.get(_PARTS.get(first, "")) if checkpoint.model_type in _PUT_TOGETHER else None
    kind = part.get("model_type") if isinstance(part, dict) else checkpoint.model_type
    return kind if isinstance(kind, str) else None


_PUT_TOGETHER = ("encoder-decoder", "vision-encoder-decoder", "speech-encoder-decoder", "vision-text-dual-encoder")
_PARTS = {"encoder": "encoder", "decoder": "decoder", "vision_model": "vision_config", "text_model": "text_config"}


def _in_its_part(checkpoint: Checkpoint, path: str, major: int) -> str:
    """The path of a module of a model put together from two, each of which has its own names."""
    kind = part_type(checkpoint, path)
    row = BY_MODEL_TYPE.get(kind or "")
    if kind == checkpoint.model_type or row is None:
        return path
    first, _, rest = path.partition(".")
    return f"{first}.{_renamed(rest, row, major)}"


def parameter_paths(checkpoint: Checkpoint, major: int | None = None) -> dict[str, str]:
    """Name of a tensor -> path of the parameter in the class that config.json names, under that transformers major
    (default: the installed one). A matrix in few bits is its `.weight`."""
    kind = checkpoint.model_type
    row = BY_MODEL_TYPE.get(kind or "")
    base = row.model_types[kind] if row and kind else ""
    known = [*(row.prefixes if row else ()), *([f"{base}."] if base else [])]
    prefixes = sorted(known, key=len, reverse=True)
    bare = all(is_bare(name) for name in checkpoint.architectures)
    headed = bool(base) and any(name.startswith(f"{base}.") for name in checkpoint.tensors)  # the rest is the head
    major, found = major or installed_transformers_major(), {}
    for name in checkpoint.tensors:
        stem, _, last = logical_name(name).rpartition(".")
        prefix = next((prefix for prefix in prefixes if stem.startswith(prefix)), "")
        match = Match("q", 0, "", f"{stem}.weight", prefix or ("." if headed else ""))
        path = module_path(match, row, base, checkpoint.architectures, major)
        path = _in_its_part(checkpoint, path, major)
        if (kind, stem) in _RENAMED_HEADS and major >= _LATEST_MAJOR:
            path = _RENAMED_HEADS[kind, stem]
        found[name] = f"{path if bare else _in_towers(path, row)}.{last}" if stem else last
    return found


def possible_names(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Name of a tensor -> every path that its parameter may have: in the class of the installed transformers first,
    then in that of another major, then as in the file. Adapters of any time and trainer use one of them."""
    majors = sorted({4, 5}, key=lambda major: major != installed_transformers_major())
    paths = [parameter_paths(checkpoint, major) for major in majors]
    return {
        name: tuple(dict.fromkeys([*(path[name] for path in paths), logical_name(name)])) for name in checkpoint.tensors
    }


def holds_several(checkpoint: Checkpoint, tensor: str) -> bool:
    """Whether several projections lie in one tensor."""
    row = BY_MODEL_TYPE.get(checkpoint.model_type or "")
    stem = tensor.removesuffix(".weight")
    layouts = {**MLP_LAYOUTS, **(row.layouts if row else {})}
    several = (*FUSED, *(leaf for leaf, layout in layouts.items() if not layout.single))
    return any(stem == leaf or stem.endswith(f".{leaf}") for leaf in several)


_RENAMED_HEADS: dict[tuple[str | None, str], str] = {
    ("gpt_neox", "embed_out"): "lm_head"
}  # by transformers 5, outside the rows of the table
# Where transformers 5 has the parts of models with a text tower that older files name otherwise.
_TOWERS = tuple(
    (re.compile(expression), replacement)
    for expression, replacement in (
        (r"^(?:model\.)?language_model\.lm_head(?=$|\.)", "lm_head"),
        (r"^(?:model\.)?language_model\.model\.(?:model\.)?", "model.language_model."),
        (r"^model\.(?=embed_tokens|norm$|layers\.)", "model.language_model."),
        (r"^language_model\.(?!model\.)", "model.language_model."),
        (r"^(?=visual\.|vision_tower\.|multi_modal_projector\.|audio_tower\.)", "model."),
    )
)


def _in_towers(path: str, row: Architecture | None) -> str:
    """The path of a module of a model with towers, where the row's own renames have not reached it."""
    if row is not None and "language_model.model." in row.prefixes:
        for expression, replacement in _TOWERS:
            path, count = expression.subn(replacement, path, 1)
            if count:
                break
    return path


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


def is_bare(architecture: str) -> bool:
    """BertModel and ViTModel are bodies; GPT2LMHeadModel and MarianMTModel are not."""
    return architecture in BODIES or (
        architecture.endswith("Model") and not architecture.endswith(("HeadModel", "HeadsModel", "MTModel"))
    )
