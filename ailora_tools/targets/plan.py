"""Which tensors will be worked on, decided from names and headers before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ..checkpoint.header import TensorInfo
from ..checkpoint.index import Checkpoint
from ..errors import OptionError, TargetError, listed
from ..matrices.layouts import LATENT
from ..matrices.quantisation import MAINS, Quantised, find_quantised, logical_name, quantization_config
from ..methods import ROLES
from .architectures import BY_MODEL_TYPE, FUSED, UNREACHABLE
from .matching import Match, match_leaves, match_table, match_template
from .module_names import installed_transformers_major, module_path
from .projections import Plan, Target
from .rows import Architecture

SUPPORTED_DTYPES = ("F64", "F32", "F16", "BF16")


def make_plan(
    checkpoint: Checkpoint,
    *,
    roles: Sequence[str] = ("q", "v"),
    layers: str | None = None,
    q_tensor: str | None = None,
    v_tensor: str | None = None,
    transformers_major: int | None = None,
    quantised: bool = False,
) -> Plan:
    """Find the projections of `roles` ("q", "k", "v", "o").

    `layers` is a list such as "0-3,8". `q_tensor` and `v_tensor` are tensor names with `{layer}` that replace
    what the table says. Raises TargetError, with everything that is wrong at once, where projections cannot be
    found, are fused in an unknown way, or of an unsupported dtype; matrices in few bits (`quantisation.FORMATS`) are
    supported if `quantised`, to be looked at but not to be written. Raises OptionError for layers that are not there.
    """
    model_type = _model_type(checkpoint.config)
    row = BY_MODEL_TYPE.get(model_type or "")
    base = row.model_types[model_type] if row and model_type else ""
    templates = {role: text for role, text in (("q", q_tensor), ("v", v_tensor)) if text and role in roles}
    stored_names = {logical_name(name): name for name in checkpoint.tensors}
    matches, notices = _find(checkpoint, list(stored_names), model_type, row, base, roles, templates)
    notices += _skipped(matches, checkpoint)
    if layers is not None:
        matches = _select(matches, parse_layers(layers))
    major = transformers_major or installed_transformers_major()
    architectures = _architectures(checkpoint.config)
    found = []
    for match in matches:
        file, info = checkpoint.tensors[stored_names.get(match.tensor, match.tensor)]
        module = module_path(match, None if match.role in templates else row, base, architectures, major)
        found.append((match, module, file, info))
    few_bits = {info.name: held for *_, info in found if (held := find_quantised(checkpoint, info.name))}
    _require_usable(found, few_bits, quantised, quantization_config(checkpoint.config).get("quant_method"))
    if few_bits:
        labels = sorted({held.label for held in few_bits.values()})
        notices.append(f"{len(few_bits)} matrices are quantised, {listed(labels)}: taken as the numbers they stand for")
    targets = [
        _target(match, module, file, info, checkpoint.config, few_bits.get(info.name))
        for match, module, file, info in found
    ]
    ordered = sorted(targets, key=lambda target: (target.file, target.start, ROLES.index(target.role)))
    notices += _about_layouts(matches)
    family = row.family if row else "Recognised by names"
    return Plan(
        model_type,
        family,
        tuple(ordered),
        (*checkpoint.files.notices, *notices, *_incomplete(matches, roles)),
    )


def parse_layers(text: str) -> frozenset[int]:
    """ "0-3,8" -> {0, 1, 2, 3, 8}; OptionError if it is not such a list."""
    numbers: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        plain = low.isdecimal() and (high.isdecimal() or not dash) and len(low + high) < 40  # int() has a limit
        if not plain or (dash and int(high) < int(low)):
            raise OptionError(f"--layers {text!r}: {part.strip()!r} is neither a number nor a range.", "Such as 0-3,8.")
        if dash and int(high) - int(low) > 100_000:
            raise OptionError(f"--layers {text!r}: the range {part.strip()!r} is too long.", "Such as 0-3,8.")
        numbers.update(range(int(low), int(high or low) + 1))
    return frozenset(numbers)


def target_modules(plan: Plan, checkpoint: Checkpoint) -> list[str]:
    """PEFT's target_modules for exactly these modules: last names where they hit nothing else, else full paths.

    PEFT takes an entry of the list as a whole path or as its end behind a dot.
    """
    modules = {target.module for target in plan.targets}
    tensors = {target.tensor for target in plan.targets}
    short = {_leaf(module) for module in modules}
    # Other modules may be renamed on loading just as these are, so their names in the file count as well.
    taken = short | {_leaf(logical_name(tensor)) for tensor in tensors}
    hit = any(_leaf(logical_name(name)) in taken for name in checkpoint.tensors if name not in tensors)
    return sorted(modules if hit else short)


def _find(
    checkpoint: Checkpoint,
    names: list[str],
    model_type: str | None,
    row: Architecture | None,
    base: str,
    roles: Sequence[str],
    templates: Mapping[str, str],
) -> tuple[list[Match], list[str]]:
    """Matches and notices; TargetError if a role is nowhere."""
    matches = [match for role, text in templates.items() for match in _by_template(text, role, names)]
    rest = [role for role in roles if role not in templates]
    if model_type in UNREACHABLE:
        raise TargetError(
            f"{checkpoint.location}: {model_type} models cannot be worked on: {UNREACHABLE[model_type]}.",
            "Choose a model of another type.",
        )
    notices = []
    if row is not None:
        found = match_table(row, base, names, rest)
        notices += _left_alone(row, names, found, rest)
    else:
        found = match_leaves(names, rest)
        if found:
            notices.append(
                f"model type {model_type!r} is not in the table: recognised by names such as {found[0].tensor}; "
                "check them with `inspect`"
            )
            notices += _lookalikes(checkpoint, {match.tensor for match in found})
    lacking = [role for role in rest if role not in {match.role for match in found}]
    if lacking:
        raise _not_found(checkpoint, model_type, row, lacking)
    return matches + found, notices


def _by_template(template: str, role: str, names: list[str]) -> list[Match]:
    found = match_template(template, role, names)
    if not found:
        near = get_close_matches(template.replace("{layer}", "0"), names, 3, 0.3)
        raise TargetError(
            f"--{role}-tensor {template!r} names no tensor of the checkpoint.",
            f"Similar names: {', '.join(near) or 'none'}. Write {{layer}} for the number of the layer.",
        )
    return found


def _select(matches: list[Match], wanted: frozenset[int]) -> list[Match]:
    there = {match.layer for match in matches}
    missing = sorted(wanted - there)
    if missing:
        raise OptionError(
            f"--layers: there is no layer {listed([str(number) for number in missing])}.",
            f"The layers with these projections are {min(there)} to {max(there)}.",
        )
    return [match for match in matches if match.layer in wanted]


def _require_usable(
    found: Sequence[tuple[Match, str, str, TensorInfo]],
    few_bits: Mapping[str, Quantised],
    allowed: bool,
    method: Any,
) -> None:
    """Two dimensions, a float dtype (or a known format of few bits), one tensor for one place: all faults at once."""
    faults, modules, places = [], set(), set()
    for match, module, _, info in found:
        if info.name in few_bits and not allowed:
            faults.append(f"{info.name} is stored as {few_bits[info.name].label}")
        elif info.name.endswith(MAINS) and info.name not in few_bits:
            faults.append(f"{info.name} is quantised in a way that is not known (quant_method {method!r})")
        elif info.dtype not in SUPPORTED_DTYPES and info.name not in few_bits:
            told = f" (quant_method {method!r})" if method else ""
            faults.append(f"{info.name} is stored as {info.dtype}{told}, not as one of {', '.join(SUPPORTED_DTYPES)}")
        elif len(info.shape) != 2 or 0 in info.shape:
            faults.append(f"{info.name} has shape {list(info.shape)}, not that of a matrix")
        place = (match.stack, match.layer, match.role)
        if (module in modules and match.layout is None) or place in places:
            faults.append(f"{info.name} is a second tensor for {' '.join(map(str, place)).strip()}")
        modules.add(module)
        places.add(place)
    if faults:
        raise TargetError(
            f"{len(faults)} of {len(found)} projections cannot be worked on: {listed(faults, 5)}.",
            "Weights in few bits hold no residual: start from the 16-bit or 32-bit original of the model, or use "
            "`init --no-base`, which leaves the base as it is (known formats only, as for `analyze`). --q-tensor and "
            "--v-tensor name other tensors.",
        )


def _target(
    match: Match, module: str, file: str, info: TensorInfo, config: Mapping[str, Any], held: Quantised | None
) -> Target:
    rows, columns = shape = held.shape if held else (info.shape[0], info.shape[1])
    part = None
    if match.layout is not None:
        lines, inputs = (columns, rows) if match.layout.transposed else (rows, columns)
        part = match.layout.part(config, match.role, lines, match.layer, match.tensor)
        shape = (part.lines, inputs)
    return Target(
        match.role, match.layer, match.stack, info.name, module, file, info.dtype, shape, info.start, info.stop,
        (info.shape[0], info.shape[1]), part, held,
    )  # fmt: skip


def _about_layouts(matches: Sequence[Match]) -> list[str]:
    """What the user should know about fused tensors."""
    layouts = {match.layout for match in matches if match.layout is not None}
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


def _incomplete(matches: Sequence[Match], roles: Sequence[str]) -> list[str]:
    """Layers that have one of the roles and not another, such as shared keys and values."""
    places: dict[tuple[str, int], set[str]] = {}
    for match in matches:
        places.setdefault((match.stack, match.layer), set()).add(match.role)
    notices = []
    for role in roles:
        lacking = sorted(place for place, found in places.items() if role not in found)
        if lacking:
            shown = listed([f"{stack} {layer}".strip() for stack, layer in lacking], 8)
            notices.append(
                f"no W^{role.upper()} of their own in layers {shown}: only their other projections are taken"
            )
    return notices


def _skipped(matches: Sequence[Match], checkpoint: Checkpoint) -> list[str]:
    """Layers that hold another kind of attention, or none: linear attention, state spaces, convolutions."""
    config = checkpoint.config
    text = config.get("text_config")
    count = (text if isinstance(text, dict) else config).get("num_hidden_layers")
    there = {match.layer for match in matches if match.stack in ("", "text")}
    held = {int(hit[1]) for name in checkpoint.tensors if (hit := re.search(r"\blayers\.(\d{1,9})\.", name))}
    lacking = sorted((held & set(range(count))) - there) if isinstance(count, int) and there else []
    shown = listed([str(layer) for layer in lacking], 8)
    told = f"layers {shown} are of another kind and have no W^Q and W^V like these: they are left alone"
    return [told] if lacking else []


def _lookalikes(checkpoint: Checkpoint, taken: Container[str]) -> list[str]:
    """Matrices that are called queries or values as well, such as add_q_proj of joint attention in diffusers."""
    others = [
        name
        for name, (_, info) in checkpoint.tensors.items()
        if name not in taken and len(info.shape) == 2 and {"q", "v", "query", "value"} & set(_leaf(name).split("_"))
    ]
    told = f"{len(others)} other tensors look like queries or values and are left alone: {listed(others)}"
    return [told] if others else []


def _left_alone(row: Architecture, names: Sequence[str], found: Sequence[Match], roles: Sequence[str]) -> list[str]:
    """Tensors that are named like targets but lie in another tower."""
    taken = {match.tensor for match in found}
    ends = tuple(f".{leaf}.weight" for role in roles for leaf in row.leaves[role])
    others = [name for name in names if name.endswith(ends) and name not in taken]
    if not others or not found:
        return []
    if len(others) == 1:
        return [f"{others[0]}, of another part of the model, is left alone"]
    return [f"{len(others)} tensors of other parts of the model are left alone, such as {others[0]}"]


def _not_found(
    checkpoint: Checkpoint, model_type: str | None, row: Architecture | None, lacking: Sequence[str]
) -> TargetError:
    """Say why: fused, quantised, or unknown; with the names that look like attention."""
    what = " and ".join(f"W^{role.upper()}" for role in lacking)
    where = f"{checkpoint.location} (model type {model_type or 'not stated'})"
    for name, (_, info) in checkpoint.tensors.items():
        leaf = _leaf(name)
        mixer = leaf == "in_proj" and not _looks_like(name)  # Mamba layers have one, too
        if leaf in FUSED and len(info.shape) == 2 and not mixer:
            return TargetError(
                f"{where}: no tensor of its own for {what}: {name} {list(info.shape)} holds {FUSED[leaf]}.",
                "In which order its lines hold them is not known for this model type, and guessing would do harm.",
            )
    near = [name for name, (_, info) in checkpoint.tensors.items() if len(info.shape) == 2 and _looks_like(name)]
    known = f"a {row.family} checkpoint should have them" if row else "the model type is not in the table"
    return TargetError(
        f"{where}: {what} not found; {known}. Attention-looking tensors: {listed(near, 6) or 'none'}.",
        "Name them: --q-tensor 'blocks.{layer}.attn.wq.weight' --v-tensor 'blocks.{layer}.attn.wv.weight'."
        if set(lacking) <= {"q", "v"}
        else "Only W^Q and W^V can be named by hand: leave the other roles out.",
    )


def _leaf(name: str) -> str:
    """The last part of the name of a module, or of its weight."""
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def _looks_like(name: str) -> bool:
    return any(part in name.lower() for part in ("attn", "attention", "query", "value", "qkv", ".q.", ".v."))


def _model_type(config: Mapping[str, Any]) -> str | None:
    """transformers writes model_type; diffusers _class_name; timm its architecture and where the weights came from."""
    if "pretrained_cfg" in config and "architecture" in config:
        return "timm"
    value = config.get("model_type", config.get("_class_name"))
    return value if isinstance(value, str) else None


def _architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("architectures")
    return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()
