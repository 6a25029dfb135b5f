"""Checkpoints of a model that was saved inside of a wrapper: their names are not those of the class. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import CheckpointError


@dataclass(frozen=True)
class Wrapper:
    """What leaves `mark` in the names of tensors, and how to save what is inside."""

    name: str
    mark: re.Pattern[str]
    way_out: str


_LORA = re.compile(r"(?:.*\.)?(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(?:\..*)?")
WRAPPERS = (
    Wrapper(
        "PEFT",
        re.compile(rf"{_LORA.pattern}|.*\.(?:base_layer|original_module)\.(?:weight|bias)|.*\.modules_to_save\..*"),
        "Merge first: model.merge_and_unload().save_pretrained(folder) writes the model with its adapter added in; "
        "model.unload() instead gives the base alone.",
    ),
    Wrapper(
        "FSDP", re.compile(r".*\b(?:_fsdp_wrapped_module|_flat_param)\b.*"),
        "Unwrap first: gather a full state dict (FullStateDictConfig; accelerate: unwrap_model, get_state_dict) and "
        "give it to model.save_pretrained(folder, state_dict=...).",
    ),
    Wrapper(
        "checkpoint_wrapper", re.compile(r".*\b_checkpoint_wrapped_module\b.*"),
        "Unwrap first: take `_checkpoint_wrapped_module.` out of the names of model.state_dict(), and give it to "
        "save_pretrained(folder, state_dict=...).",
    ),
    Wrapper(
        "torch.compile", re.compile(r"(?:.*\.)?_orig_mod\..*"),
        "Unwrap first: model._orig_mod.save_pretrained(folder).",
    ),
    Wrapper(
        "Lightning Fabric", re.compile(r"(?:.*\.)?_forward_module\..*"),
        "Unwrap first: model._forward_module.save_pretrained(folder).",
    ),
)  # fmt: skip
_PARALLEL = Wrapper(
    "DataParallel, DDP or DeepSpeed", re.compile(r"module\..*"),
    "Unwrap first: model.module.save_pretrained(folder), or accelerator.unwrap_model(model).",
)  # fmt: skip


def require_unwrapped(location: str, names: Collection[str]) -> None:
    """CheckpointError if the names are those of a wrapped model, or of an adapter alone, with the way out."""
    if names and all(_LORA.fullmatch(name) for name in names):
        raise CheckpointError(
            f"{location}: an adapter, not a model: W^Q and W^V are not found in it.",
            "Give the model that the adapter is for.",
        )
    for wrapper in (*WRAPPERS, _PARALLEL):
        marked = [name for name in names if wrapper.mark.fullmatch(name)]
        # Only some names may begin with "module." in a class of its own; a wrapper stands around all of them.
        if marked and (wrapper is not _PARALLEL or len(marked) == len(names)):
            raise wrapped(location, wrapper.name, marked[0], len(marked), len(names), wrapper.way_out)


def wrapped(location: str, by: str, example: str, count: int, of: int, way_out: str) -> CheckpointError:
    """The error for `count` of the names, such as `example`."""
    return CheckpointError(
        f"{location}: saved while wrapped ({by}): {count} of {of} tensors have names such as {example}, which the "
        "class does not have.",
        way_out,
    )
