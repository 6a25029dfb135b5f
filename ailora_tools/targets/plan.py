"""Which tensors will be worked on, decided from names and headers before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ..checkpoint.header import FLOATS, StoredTensor
from ..checkpoint.index import Checkpoint
from ..checkpoint.wrapped import wrapped
from ..errors import CheckpointError, OptionError, TargetError, listed
from ..matrices.quantisation import MAINS, Quantised, find_quantised, logical_name, quantization_config
from ..methods import ROLES
from .architectures import BY_MODEL_TYPE, UNREACHABLE
from .matching import Match, match_leaves, match_table, match_template
from .module_names import installed_transformers_major, module_path
from .notices import about_few_bits, about_layouts, by_names, incomplete, leaf, left_alone, not_found, skipped
from .projections import Plan, Target
from .rows import Architecture
from .selection import Selection, parse_layers


def make_plan(
    checkpoint: Checkpoint,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    *,
    transformers_major: int | None = None,
    quantised: bool = False,
) -> Plan:
    """Find the selected projections.

    Raises TargetError, with everything that is wrong at once, where projections cannot be found, are fused in an
    unknown way, or of an unsupported dtype; matrices in few bits (`quantisation.FORMATS`) are supported if `quantised`,
    to be looked at but not to be written. Raises OptionError for layers that are not there.
    """
    kind, config = checkpoint.model_type, checkpoint.config
    row = BY_MODEL_TYPE.get(kind or "")
    base = row.model_types[kind] if row and kind else ""
    stored_names = {logical_name(name): name for name in (*checkpoint.ghosts, *checkpoint.tensors)}
    matches, notices = _find(checkpoint, list(stored_names), kind, row, base, selection)
    notices += skipped(matches, checkpoint)
    if selection.layers is not None:
        matches = _select(matches, parse_layers(selection.layers))
    _require_held(checkpoint, [stored_names.get(match.tensor, match.tensor) for match in matches])
    major = transformers_major or installed_transformers_major()
    found = []
    for match in matches:
        of = None if match.role in selection.templates else row
        module = module_path(match, of, base, checkpoint.architectures, major)
        found.append(_Found(match, module, checkpoint.tensors[stored_names.get(match.tensor, match.tensor)]))
    names = [one.stored.name for one in found]
    few_bits = {name: held for name in names if (held := find_quantised(checkpoint, name))}
    _require_usable(found, few_bits, quantised, quantization_config(config).get("quant_method"))
    targets = [_target(one, config, few_bits.get(one.stored.name)) for one in found]
    targets.sort(key=lambda target: (target.stored.file, target.stored.start, ROLES.index(target.role)))
    notices += [*about_few_bits(few_bits), *about_layouts(matches), *incomplete(matches, selection.roles)]
    family = row.family if row else "Recognised by names"
    return Plan(kind, family, tuple(targets), (*checkpoint.notices, *notices))


@dataclass(frozen=True)
class _Found:
    """A name that matched, the path of its module in memory, and the tensor."""

    match: Match
    module: str
    stored: StoredTensor


def target_modules(plan: Plan, checkpoint: Checkpoint) -> list[str]:
    """PEFT's target_modules for exactly these modules: last names where they hit nothing else, else full paths.

    PEFT takes an entry of the list as a whole path or as its end behind a dot.
    """
    modules = {target.module for target in plan.targets}
    tensors = {target.tensor for target in plan.targets}
    short = {leaf(module) for module in modules}
    # Other modules may be renamed on loading just as these are, so their names in the file count as well.
    taken = short | {leaf(logical_name(tensor)) for tensor in tensors}
    hit = any(leaf(logical_name(name)) in taken for name in checkpoint.tensors if name not in tensors)
    return sorted(modules if hit else short)


def _find(
    checkpoint: Checkpoint, names: list[str], kind: str | None, row: Architecture | None, base: str,
    selection: Selection,
) -> tuple[list[Match], list[str]]:  # fmt: skip
    """Matches and notices; TargetError if a role is nowhere."""
    templates = selection.templates
    matches = [match for role, text in templates.items() for match in _by_template(text, role, names)]
    rest = [role for role in selection.roles if role not in templates]
    if kind in UNREACHABLE:
        raise TargetError(
            f"{checkpoint.location}: {kind} models cannot be worked on: {UNREACHABLE[kind]}.",
            "Choose a model of another type.",
        )
    found = match_table(row, base, names, rest) if row else match_leaves(names, rest)
    notices = left_alone(row, names, found, rest) if row else by_names(kind, found, checkpoint)
    lacking = [role for role in rest if role not in {match.role for match in found}]
    if lacking:
        _require_no_prefix(checkpoint, row, base, names, lacking)
        raise not_found(checkpoint, kind, row, lacking)
    return matches + found, notices


def _require_no_prefix(
    checkpoint: Checkpoint, row: Architecture | None, base: str, names: list[str], lacking: list[str]
) -> None:
    """CheckpointError if the names would be those of the table behind a prefix, as a trainer's own module leaves it."""
    firsts = {f"{name.split('.', 1)[0]}." for name in names} if row is not None else set()
    for prefix in sorted(firsts):
        inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if row is not None and {match.role for match in match_table(row, base, inner, lacking)} == set(lacking):
            raise wrapped(
                checkpoint.location, f"a module that holds the model as {prefix[:-1]!r}, as in Lightning",
                prefix + inner[0], len(inner), len(names),
                f"Unwrap first: save the model inside, module.{prefix}save_pretrained(folder), or take {prefix!r} out "
                "of the names and save them anew with safetensors.",
            )  # fmt: skip


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


def _require_held(checkpoint: Checkpoint, wanted: Sequence[str]) -> None:
    """Nothing that is wanted may be in the index alone."""
    lost = [f"{name} (in {checkpoint.ghosts[name]})" for name in wanted if name in checkpoint.ghosts]
    if lost:
        raise CheckpointError(
            f"{checkpoint.location}: {checkpoint.index_name} names {len(lost)} of {len(wanted)} projections that no "
            f"shard holds: {listed(lost)}.",
            "Shards and index come from different exports: fetch them again together.",
        )


def _require_usable(found: Sequence[_Found], few_bits: Mapping[str, Quantised], allowed: bool, method: Any) -> None:
    """Two dimensions, a float dtype (or a known format of few bits), one tensor for one place: all faults at once."""
    faults, modules, places = [], set(), set()
    for one in found:
        match, module, stored = one.match, one.module, one.stored
        if stored.name in few_bits and not allowed:
            faults.append(f"{stored.name} is stored as {few_bits[stored.name].label}")
        elif stored.name.endswith(MAINS) and stored.name not in few_bits:
            faults.append(f"{stored.name} is quantised in a way that is not known (quant_method {method!r})")
        elif stored.dtype not in FLOATS and stored.name not in few_bits:
            told = f" (quant_method {method!r})" if method else ""
            faults.append(f"{stored.name} is stored as {stored.dtype}{told}, not as one of {', '.join(FLOATS)}")
        elif len(stored.shape) != 2 or 0 in stored.shape:
            faults.append(f"{stored.name} has shape {list(stored.shape)}, not that of a matrix")
        place = (match.stack, match.layer, match.role)
        if (module in modules and match.layout is None) or place in places:
            faults.append(f"{stored.name} is a second tensor for {' '.join(map(str, place)).strip()}")
        modules.add(module)
        places.add(place)
    if faults:
        raise TargetError(
            f"{len(faults)} of {len(found)} projections cannot be worked on: {listed(faults, 5)}.",
            "Weights in few bits hold no residual: start from the 16-bit or 32-bit original of the model, or use "
            "`init --no-base`, which leaves the base as it is (known formats only, as for `analyze`). --q-tensor and "
            "--v-tensor name other tensors.",
        )


def _target(found: _Found, config: Mapping[str, Any], held: Quantised | None) -> Target:
    match, stored = found.match, found.stored
    rows, columns = shape = held.shape if held else (stored.shape[0], stored.shape[1])
    part = None
    if match.layout is not None:
        lines, inputs = (columns, rows) if match.layout.transposed else (rows, columns)
        part = match.layout.part(config, match.role, lines, match.layer, match.tensor)
        shape = (part.lines, inputs)
    return Target(
        role=match.role, layer=match.layer, stack=match.stack, module=found.module, shape=shape, stored=stored,
        part=part, quantised=held,
    )  # fmt: skip
