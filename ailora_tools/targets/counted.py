"""Which of the matching tensors the class builds a module for, as far as config.json alone tells.

Checkpoints hold more than their class loads: layers for the prediction of further tokens behind the last one, keys and
values of layers that use those of others. How each type counts is proven in tests/targets/test_built.py; what
config.json leaves open, or what no test has shown, only the class itself can tell (`module_tree`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods import ATTENTION
from .matching import Match
from .rows import Count

_MOST = 4096  # as `built_class`: no model has more layers, and such a count is none

# Classes that build one stack of a family with several.
_PARTIAL = (
    "Encoder", "Decoder", "TextModel", "VisionModel", "ForCausalLM", "ForTokenClassification",
    "ForAudioClassification", "ForImageClassification",
)  # fmt: skip

# In the last `num_kv_shared_layers` layers of these, keys and values are those of a layer before.
_SHARING = ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
# With `attention_k_eq_v` the values of their layers of full attention are the keys.
_KEYS_AS_VALUES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
_SHARED = ("num_kv_shared_layers", "attention_k_eq_v")

# Here `layer_types` decides which layers have attention at all.
_HYBRID = ("granitemoehybrid", "lfm2", "lfm2_moe", "olmo_hybrid", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
_NO_ATTENTION = ("linear_attention", "mamba", "conv")


@dataclass(frozen=True)
class Sorted:
    """built: what has a module, or may have one. unbuilt: tensor -> why it has none, as the end of "because they ...".
    decided: whether config.json tells all of that, so that the class need not be asked. types: the model type and those
    of the parts by whose config the layers are built."""

    built: tuple[Match, ...]
    unbuilt: Mapping[str, str]
    decided: bool
    types: frozenset[str] = frozenset()


def sort_out(
    matches: Sequence[Match], kind: str | None, config: Mapping[str, Any], architectures: Sequence[str]
) -> Sorted:
    """Tell the tensors with a module in the class from those without."""
    unbuilt, decided = {}, not _partial(matches, architectures)
    for match in matches:
        verdicts = [_within(match, config), _own(match, kind, config), _attends(match, kind, config)]
        decided = decided and None not in verdicts
        if why := next(filter(None, verdicts), None):
            unbuilt[match.tensor] = why
    types = frozenset(filter(None, [kind, *(_tower(match, kind, config)[0] for match in matches)]))
    return Sorted(tuple(match for match in matches if match.tensor not in unbuilt), unbuilt, decided, types)


def stated(count: Count | None, config: Mapping[str, Any]) -> int | None:
    """The number that the fields state; None where they are absent, contradict each other, or are no sane number."""
    if count is None:
        return None
    parts = _parts(count, config)
    for fields in (count.fields, count.otherwise):
        values = [part[name] for part in parts for name in fields if part.get(name) is not None]
        if values:
            sane = all(type(value) is int and 0 < value <= _MOST for value in values) and len(set(values)) == 1
            return values[0] if sane else None
    return None


def _parts(count: Count, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects that the fields may stand in: CLIP's old `text_config_dict` wins over `text_config`, so that the two
    have to agree."""
    if not count.within:
        return [config]
    *outer, last = count.within.split(".")
    for name in outer:
        config = part if isinstance(part := config.get(name), Mapping) else {}
    nested = config.get(last), config.get(f"{last}_dict")
    return [part for part in nested if isinstance(part, Mapping)]


def _partial(matches: Sequence[Match], architectures: Sequence[str]) -> bool:
    """Whether the class may leave out a whole stack of those found, or has a prefix in some versions alone, as the
    backbones of some types do."""
    if any(name.endswith("Backbone") for name in architectures):
        return True
    stacks = {match.tower.split(" ")[0] for match in matches}
    return len(stacks) > 1 and any(word in name for name in architectures for word in _PARTIAL)


def _within(match: Match, config: Mapping[str, Any]) -> str | None:
    """Why the layer is not built, "" if it is, None if that is not known."""
    for number, count in ((match.layer, match.count), (match.inner, match.inner_count)):
        if count is not None and not count.fields:
            continue
        most = stated(count, config)
        if most is None:
            return None
        if number >= most:
            return f"lie beyond the {most} layers that config.json counts"
    return ""


def _own(match: Match, kind: str | None, config: Mapping[str, Any]) -> str | None:
    """The same for the keys and values of one layer."""
    if match.role not in ("k", "v"):
        return ""
    kind, part = _tower(match, kind, config)
    shared, alike = part.get(_SHARED[0]), part.get(_SHARED[1])
    if kind not in _SHARING:
        return None if shared or alike else ""
    layers = stated(match.count, config)
    if layers is None or type(shared) is not int or not 0 <= shared < layers:
        return None
    if match.layer >= layers - shared:
        return "belong to layers that use the keys and values of others"
    if kind not in _KEYS_AS_VALUES or alike is False or match.role == "k":
        return ""
    held = _layer_type(match, part)
    if alike is not True or held is None:
        return None
    full = held != "sliding_attention" or match.layer == layers - 1
    return "belong to layers whose values are their keys" if full else ""


def _attends(match: Match, kind: str | None, config: Mapping[str, Any]) -> str:
    """The same for layers that have no attention; where no `layer_types` are stated, their tensors tell."""
    kind, part = _tower(match, kind, config)
    other = match.role in ATTENTION and kind in _HYBRID and _layer_type(match, part) in _NO_ATTENTION
    return "belong to layers of another kind" if other else ""


def _tower(match: Match, kind: str | None, config: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """The model type and the part of config.json that the layer is built by."""
    part = _parts(match.count, config)[:1] if match.count is not None else [config]
    own = part[0].get("model_type") if part else None
    return own if isinstance(own, str) else kind, part[0] if part else {}


def _layer_type(match: Match, part: Mapping[str, Any]) -> str | None:
    listed = part.get("layer_types")
    held = listed[match.layer] if isinstance(listed, list) and match.layer < len(listed) else None
    return held if isinstance(held, str) else None
