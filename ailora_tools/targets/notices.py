"""What the user should know about the choice of targets, and why targets were not found."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from ..checkpoint.index import Checkpoint
from ..errors import TargetError, listed
from ..matrices.layouts import LATENT
from ..matrices.quantisation import Quantised, logical_name
from ..methods import ATTENTION, ROLES, symbol
from .architectures import FUSED
from .matching import EXPERTS, Match, last_word
from .multimodal import OTHER_TOWERS
from .rows import Architecture

_FEW = 5  # layers for multi-token prediction; a tower with more than that beyond the count is another one


def about_few_bits(few_bits: Mapping[str, Quantised]) -> list[str]:
    """Which formats of few bits the matrices are stored in."""
    labels = sorted({held.label for held in few_bits.values()})
    told = f"{len(few_bits)} matrices are quantised, {listed(labels)}: taken as the numbers they stand for"
    return [told] if few_bits else []


def by_names(kind: str | None, found: Sequence[Match], checkpoint: Checkpoint) -> list[str]:
    """For a model that no row describes: how its projections were recognised, and what looks like them besides."""
    if not found:
        return []
    told = (
        f"model type {kind!r} is not in the table: recognised by names such as {found[0].tensor}; "
        "check them with `inspect`"
    )
    return [told, *_lookalikes(checkpoint, {match.tensor for match in found})]


def about_type(kind: str | None, row: Architecture | None) -> list[str]:
    """Whether this type's class has been run by a test, as the rest of its row."""
    told = (
        f"what the table says of model type {kind!r} is read from its published code, no test has run its class: "
        "compare the model with base and adapter against the original before training"
    )
    return [told] if row and kind in row.unproven else []


def about_layouts(matches: Sequence[Match]) -> list[str]:
    """What the user should know about fused tensors, in the order in which they come."""
    layouts = dict.fromkeys(match.layout for match in matches if match.layout is not None)
    notices = [
        f"the layout {layout.text} of this model's fused projections is read from its published code and is not proven "
        "by a test: compare the model with base and adapter against the original before training"
        for layout in layouts
        if not layout.proven
    ]
    if LATENT in layouts:
        notices.append(
            "multi-head latent attention: W^V is the part of kv_b_proj behind the latent, whose norm lies between the "
            "two factors; its rank is at most that of the latent"
        )
    return notices


def incomplete(matches: Sequence[Match], roles: Sequence[str]) -> list[str]:
    """Layers that have one of the roles and not another, such as shared keys and values."""
    places: dict[tuple[str, int], set[str]] = {}
    for match in matches:
        places.setdefault((match.stack, match.layer), set()).add(match.role)
    notices = []
    for role in (role for role in roles if role in ROLES):
        like = ATTENTION if role in ATTENTION else tuple(set(ROLES) - set(ATTENTION))
        lacking = sorted(place for place, found in places.items() if role not in found and found & set(like))
        if lacking:
            shown = listed([f"{stack} {layer}".strip() for stack, layer in lacking], 8)
            notices.append(f"no {symbol(role)} of their own in layers {shown}: only their other projections are taken")
    return notices


def skipped(matches: Sequence[Match], checkpoint: Checkpoint) -> list[str]:
    """Layers that hold another kind of attention, or none: linear attention, state spaces, convolutions."""
    config = checkpoint.config
    text = config.get("text_config")
    count = (text if isinstance(text, dict) else config).get("num_hidden_layers")
    there = {match.layer for match in matches if match.tower in ("", "text") and match.role in ATTENTION}
    held = {int(hit[1]) for name in checkpoint.tensors if (hit := re.search(r"\blayers\.(\d{1,9})\.", name))}
    within = {layer for layer in held if layer < count} if isinstance(count, int) else set()
    lacking = sorted(within - there) if there else []
    shown = listed([str(layer) for layer in lacking], 8)
    told = f"layers {shown} are of another kind and have no W^Q and W^V like these: they are left alone"
    return [told] if lacking else []


def about_experts(names: Iterable[str], roles: Sequence[str]) -> list[str]:
    """Of a mixture: that matrices of its experts have no adapter, where those of an MLP are to have one."""
    if set(roles) <= set(ATTENTION):
        return []
    experts = [name for name in names if EXPERTS.search(name)]
    return [f"left alone, as experts of a mixture: {listed(experts)}"] if experts else []


def by_reason(unbuilt: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason, as the end of "because they ...", -> tensors that the class builds no module for."""
    groups: dict[str, list[str]] = {}
    for tensor, why in unbuilt.items():
        groups.setdefault(why, []).append(tensor)
    return groups


def about_unbuilt(unbuilt: Mapping[str, str]) -> list[str]:
    """What is named like targets and has no module."""
    return [f"left alone, because they {why}: {listed(names, 6)}" for why, names in by_reason(unbuilt).items()]


def beyond(config: Mapping[str, Any], matches: Sequence[Match]) -> list[str]:
    """For a model that no row describes: a few layers more than config.json counts may be such as no class builds."""
    text = config.get("text_config")
    count = (text if isinstance(text, dict) else config).get("num_hidden_layers")
    if type(count) is not int or not 0 < count <= max((match.layer for match in matches), default=0) < count + _FEW:
        return []
    first = next(match.tensor for match in matches if match.layer >= count)
    return [
        f"config.json counts {count} layers, and {first} lies beyond: if the class does not build it, leave it out "
        f"(--layers 0-{count - 1})"
    ]


def none_built(lacking: Sequence[str], unbuilt: Mapping[str, str]) -> TargetError:
    """All tensors of a role are such as the class does not build."""
    what = " and ".join(f"{symbol(role)}" for role in lacking)
    return TargetError(
        f"the class builds no module for {what}: {' '.join(about_unbuilt(unbuilt))}.",
        "Is config.json that of this checkpoint? Compare its numbers of layers with the file's.",
    )


def _lookalikes(checkpoint: Checkpoint, taken: Container[str]) -> list[str]:
    """Matrices that are called queries or values as well, such as add_q_proj of joint attention in diffusers."""
    others = [
        name
        for name, stored in checkpoint.tensors.items()
        if name not in taken
        and len(stored.shape) == 2
        and {"q", "v", "query", "value"} & set(last_word(name).split("_"))
    ]
    told = f"{len(others)} other tensors look like queries or values and are left alone: {listed(others)}"
    return [told] if others else []


def left_alone(row: Architecture, names: Sequence[str], found: Sequence[Match], roles: Sequence[str]) -> list[str]:
    """Tensors that are named like targets but lie in another tower. found: all projections that the row describes."""
    taken = {match.tensor for match in found}
    words = [last for role in roles for last in (row.leaves[role] if role in ROLES else (role,))]
    ends = tuple(f".{last}.weight" for last in words)
    others = [name for name in names if name.endswith(ends) and name not in taken and not EXPERTS.search(name)]
    if not others or not found:
        return []
    if len(others) == 1:
        return [f"{others[0]}, of another part of the model, is left alone"]
    parts = listed(sorted({_part(name) for name in others}), 6)
    return [f"{len(others)} tensors of other parts of the model are left alone, such as {parts}"]


def not_found(
    checkpoint: Checkpoint, kind: str | None, row: Architecture | None, lacking: Sequence[str]
) -> TargetError:
    """Say why: fused, quantised, or unknown; with the names that look like attention."""
    what = " and ".join(symbol(role) for role in lacking)
    where = f"{checkpoint.location} (model type {kind or 'not stated'})"
    if not set(lacking) & set(ATTENTION):
        return TargetError(
            f"{where}: no {what} in its layers{_only_experts(checkpoint)}.",
            f"The matrices of its layers are called {listed(_words(checkpoint), 12)}; roles are {', '.join(ROLES)} or "
            "such names.",
        )
    if name := next(iter(fused_tensors(checkpoint)), None):
        return TargetError(
            f"{where}: no tensor of its own for {what}: {name} {list(checkpoint.tensors[name].shape)} holds "
            f"{FUSED[last_word(name)]}.",
            "In which order its lines hold them is not known for this model type, and guessing would do harm.",
        )
    near = [name for name, stored in checkpoint.tensors.items() if len(stored.shape) == 2 and _looks_like(name)]
    known = f"a {row.family} checkpoint should have them" if row else "the model type is not in the table"
    return TargetError(
        f"{where}: {what} not found; {known}. Attention-looking tensors: {listed(near, 6) or 'none'}.",
        "Name them: --q-tensor 'blocks.{layer}.attn.wq.weight' --v-tensor 'blocks.{layer}.attn.wv.weight'."
        if set(lacking) <= {"q", "v"}
        else "Only W^Q and W^V can be named by hand: leave the other roles out.",
    )


def _only_experts(checkpoint: Checkpoint) -> str:
    return ": those of a mixture's experts have no adapter" if any(map(EXPERTS.search, checkpoint.tensors)) else ""


def _words(checkpoint: Checkpoint) -> list[str]:
    """Last names of the matrices that lie in numbered layers, experts left out."""
    matrices = [logical_name(name) for name, stored in checkpoint.tensors.items() if len(stored.shape) == 2]
    inside = [name for name in matrices if re.search(r"\.\d+\..*\.weight$", name) and not EXPERTS.search(name)]
    return sorted({last_word(name) for name in inside})


def fused_tensors(checkpoint: Checkpoint) -> list[str]:
    """Names that say several projections in one; those of the text model first."""
    found = []
    for name, stored in checkpoint.tensors.items():
        mixer = last_word(name) == "in_proj" and not _looks_like(name)  # Mamba layers have one, too
        if last_word(name) in FUSED and len(stored.shape) == 2 and not mixer:
            found.append(name)
    return sorted(found, key=lambda name: bool(OTHER_TOWERS.search(name)))


def _part(name: str) -> str:
    """The stack that a tensor lies in: "vision_tower.encoder.*" of vision_tower.encoder.layers.0.self_attn.q.weight;
    where no layer is numbered, its attention: "merger.self_attn.*"."""
    numbered = re.search(r"(?:^|\.)[^.]+\.\d+\.", name)
    return f"{name[: numbered.start()] if numbered else name.rsplit('.', 2)[0]}.*"


def _looks_like(name: str) -> bool:
    return any(part in name.lower() for part in ("attn", "attention", "query", "value", "qkv", ".q.", ".v."))
