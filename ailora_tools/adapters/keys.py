"""The name of a tensor in an adapter file, taken apart: which module or parameter it is for, and which part of it.

Names follow PEFT 0.21 (peft/utils/save_and_load.py, peft/tuners/lora, peft/tuners/trainable_tokens) and older ones;
what wraps a model while it is trained or saved (PEFT twice, DDP, FSDP, torch.compile) leaves its own words in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..checkpoint.header import StoredTensor

WHOLE = "whole"  # a parameter that takes the place of the model's
FROZEN = "frozen"  # the model's own parameter beside its trained copy: says nothing

_WRAPPERS = frozenset(["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
_NAME = r"(?:\.[^.]+)?"  # of the adapter, which PEFT leaves out on saving and others do not
_PARTS = tuple(
    (re.compile(rf"(.+)\.{expression}"), part)
    for expression, part in (
        (rf"lora_A{_NAME}\.weight", "A"),
        (r"lora_A", "A"),
        (rf"lora_B{_NAME}\.weight", "B"),
        (r"lora_B", "B"),
        (rf"lora_B{_NAME}\.bias", "bias"),
        (rf"lora_embedding_A{_NAME}", "embedding A"),
        (rf"lora_embedding_B{_NAME}", "embedding B"),
        (rf"lora_magnitude_vector{_NAME}\.weight", "magnitude"),
        (rf"lora_magnitude_vector{_NAME}", "magnitude"),
        (rf"trainable_tokens_delta{_NAME}", "tokens"),
        (rf"trainable_tokens_original{_NAME}", FROZEN),
        (r"token_adapter\.base_layer\.[^.]+", FROZEN),
        (r"original_module\..+", FROZEN),
    )
)
# Words of PEFT's own modules inside a path: what is left is the name in the model. Behind `modules_to_save` the name of
# the adapter follows.
_INSIDE = re.compile(r"\.(?:base_layer|token_adapter)(?=\.|$)|\.modules_to_save(?:\.[^.]+(?=\.))?(?=\.)")


@dataclass(frozen=True)
class Key:
    """`path` of a module, or with the part WHOLE of a parameter; part: WHOLE, FROZEN, "A", "B", "bias" (of B),
    "magnitude", "embedding A", "embedding B", "tokens", or "" for a tensor of a kind that is not known."""

    path: str
    part: str


def read_key(name: str) -> Key:
    """The name of a tensor as it stands in the file."""
    path = unwrapped(name)
    for expression, part in _PARTS:
        if hit := expression.fullmatch(path):
            return Key(_INSIDE.sub("", hit[1]), part)
    of_peft = ".lora_" in f".{path}" or "trainable_tokens" in path
    return Key(path, "") if of_peft else Key(_INSIDE.sub("", path), WHOLE)


def saved_name(path: str, stored: StoredTensor) -> str:
    """The name, without PEFT's prefix, under which PEFT reads a whole parameter or rows of an embedding: a parameter of
    an adapted module stands under `base_layer`, rows under `token_adapter`, any other under its own name."""
    name = unwrapped(stored.name)
    return name if ".base_layer." in name or "trainable_tokens" in name else path


def unwrapped(name: str) -> str:
    """The name without the words of wrappers, wherever they stand."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts[:2] == ["base_model", "model"] and len(parts) > 2:
        parts = parts[2:]
    return ".".join(parts) or name
