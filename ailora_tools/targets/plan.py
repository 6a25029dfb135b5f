"""Which tensors will be worked on, decided from names and headers before any weight is read."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from ..checkpoint.header import FLOATS, StoredTensor
from ..checkpoint.index import Checkpoint
from ..checkpoint.wrapped import wrapped
from ..errors import CheckpointError, OptionError, TargetError, listed
from ..matrices.quantisation import MAINS, Quantised, find_quantised, logical_name, quantization_config
from ..matrices.text_config import text_config
from ..methods import ROLES, role_order
from .architectures import EXPERT_NAMES, NAMED_LIKE_EXPERTS, UNREACHABLE
from .counted import sort_out
from .matching import Match, last_word, match_leaves, match_table, match_template
from .module_names import installed_transformers_major, module_path
from .multimodal import OTHER_TOWERS
from .notices import (
    about_experts,
    about_few_bits,
    about_layouts,
    about_type,
    about_unbuilt,
    beyond,
    by_names,
    fused_tensors,
    incomplete,
    left_alone,
    none_built,
    not_found,
    skipped,
)
from .projections import Plan, Target
from .recognition import Known, known, match_text_model
from .rows import Architecture
from .selection import Selection, parse_layers
from .sizes import require_sizes

_WITHOUT_EXPERT_MODULES = 5  # major version of transformers since which the experts of a mixture are parameters


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
    to be looked at but not to be written. Raises OptionError for layers that are not there, or that the class does not
    build: what it has no module for is left alone, and told.
    """
    kind, config, model = checkpoint.model_type, checkpoint.config, known(checkpoint)
    row, base = model.row, model.base
    stored_names = {logical_name(name): name for name in (*checkpoint.ghosts, *checkpoint.tensors)}
    matches, notices = _find(checkpoint, list(stored_names), model, selection)
    sorting = sort_out(matches, kind, config, checkpoint.architectures)
    matches = _held(checkpoint, matches, stored_names, sorting.unbuilt, selection)
    major = transformers_major or installed_transformers_major()
    found = []
    for match in matches:
        of = None if match.role in selection.templates else row
        module = module_path(match, of, base, checkpoint.architectures, major)
        found.append(_Found(match, module, checkpoint.tensors[stored_names.get(match.tensor, match.tensor)]))
    unbuilt = _unbuilt(found, sorting.unbuilt, selection.unbuilt)
    found = _select(found, unbuilt, selection)
    matches = [one.match for one in found]
    names = [one.stored.name for one in found]
    few_bits = {name: held for name in names if (held := find_quantised(checkpoint, name))}
    _require_usable(found, few_bits, quantised, quantization_config(config).get("quant_method"))
    targets = [_target(one, config, few_bits.get(one.stored.name)) for one in found]
    require_sizes(model, config, targets)
    targets.sort(key=lambda target: (target.stored.file, target.stored.start, role_order(target.role)))
    notices += [*about_experts(stored_names, selection.roles), *about_unbuilt(unbuilt), *skipped(matches, checkpoint)]
    notices += [] if row else beyond(config, matches)
    notices += [*about_few_bits(few_bits), *about_type(kind, row), *about_layouts(matches)]
    notices += incomplete(matches, selection.roles)
    family = row.family if row else "Recognised by names"
    return Plan(
        kind, family, tuple(targets), (*checkpoint.notices, *notices), unbuilt,
        counted=row is not None and row.proves(str(kind)) and sorting.decided and not selection.templates,
        types=sorting.types,
    )  # fmt: skip


def find_matches(checkpoint: Checkpoint, roles: Sequence[str]) -> dict[str, list[Match]]:
    """Path of a module -> what its tensor is, of the roles, by the table or by its name; whether or not each role has
    one."""
    model, names = known(checkpoint), [logical_name(name) for name in checkpoint.tensors]
    if model.row is not None:
        found = match_table(model.row, model.base, names, roles)
    else:
        found, _ = match_text_model(model, checkpoint, names, roles)
        fewer = [role for role in roles if role not in ("k", "o")]  # whose names by themselves may be others
        found = found or match_leaves(names, roles) or match_leaves(names, fewer)
    modules: dict[str, list[Match]] = {}
    for match in found:
        path = module_path(match, model.row, model.base, checkpoint.architectures, installed_transformers_major())
        modules.setdefault(path, []).append(match)
    return modules


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
    short = {last_word(module) for module in modules}
    # Other modules may be renamed on loading just as these are, so their names in the file count as well.
    taken = short | {last_word(logical_name(tensor)) for tensor in tensors}
    others = (logical_name(name) for name in checkpoint.tensors if name not in tensors)
    hit = any(last_word(name) in taken for name in others if name not in plan.unbuilt)
    return sorted(modules if hit else short)


def unreached_by_peft(kind: str | None, modules: Iterable[str], major: int) -> list[str]:
    """Those of the modules that no adapter of PEFT can be on, in a model of this type under that transformers major."""
    misread = major >= _WITHOUT_EXPERT_MODULES and kind in NAMED_LIKE_EXPERTS
    return [module for module in modules if misread and last_word(module) in EXPERT_NAMES]


def _find(
    checkpoint: Checkpoint, names: list[str], model: Known, selection: Selection
) -> tuple[list[Match], list[str]]:
    """Matches and notices; TargetError if a role is nowhere."""
    templates, kind, row = selection.templates, model.kind, model.row
    of = row or model.inner_row
    matches = [match for role, text in templates.items() for match in _by_template(text, role, names, of)]
    in_table = match_table(row, model.base, names, ROLES) if row and templates else []
    counts = {match.tensor: match.count for match in in_table}
    matches = [replace(match, count=counts.get(match.tensor)) for match in matches]
    rest = [role for role in selection.roles if role not in templates]
    if kind in UNREACHABLE:
        raise TargetError(
            f"{checkpoint.location}: {kind} models cannot be worked on: {UNREACHABLE[kind]}.",
            "Choose a model of another type.",
        )
    found, notices = _in_table(model, checkpoint, names, rest)
    if not found and row is None:
        found, notices = _by_names(checkpoint, names, rest)
    lacking = [role for role in rest if role not in {match.role for match in found}]
    if lacking:
        _require_no_prefix(checkpoint, row, model.base, names, lacking)
        raise not_found(checkpoint, kind, row, lacking)
    return matches + found, notices


def _in_table(
    model: Known, checkpoint: Checkpoint, names: list[str], roles: list[str]
) -> tuple[list[Match], list[str]]:
    """What a row describes, that of the type or else that of its text model, and what is left alone."""
    if model.row is not None:
        known = match_table(model.row, model.base, names, (*ROLES, *(role for role in roles if role not in ROLES)))
        found = match_table(model.row, model.base, names, roles)
        return found, left_alone(model.row, names, known, roles) if found else []
    found, notices = match_text_model(model, checkpoint, names, roles)
    return found, [*notices, *(left_alone(model.inner_row, names, found, roles) if model.inner_row else [])]


def _by_names(checkpoint: Checkpoint, names: list[str], roles: list[str]) -> tuple[list[Match], list[str]]:
    """Nothing if only a picture or sound tower would be taken, and the text model's are fused in an unknown order."""
    found = match_leaves(names, roles)
    fused_text = any(not OTHER_TOWERS.search(name) for name in fused_tensors(checkpoint))
    if fused_text and all(OTHER_TOWERS.search(match.tensor) for match in found):
        return [], []
    return found, by_names(checkpoint.model_type, found, checkpoint)


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


def _by_template(template: str, role: str, names: list[str], row: Architecture | None) -> list[Match]:
    found = match_template(template, role, names, row)
    if not found:
        near = get_close_matches(template.replace("{layer}", "0"), names, 3, 0.3)
        raise TargetError(
            f"--{role}-tensor {template!r} names no tensor of the checkpoint.",
            f"Similar names: {', '.join(near) or 'none'}. Write {{layer}} for the number of the layer.",
        )
    return found


def _unbuilt(found: Sequence[_Found], counted: Mapping[str, str], lacking: Collection[str]) -> dict[str, str]:
    """Tensor -> why the class has no module for it: by config.json, or because the class itself was asked."""
    asked = {one.match.tensor: "have no module in the class that loads them" for one in found if one.module in lacking}
    return {**asked, **counted}


def _select(found: Sequence[_Found], unbuilt: Mapping[str, str], selection: Selection) -> list[_Found]:
    """What the class builds, in the wanted layers; OptionError for a layer that is not there, TargetError where nothing
    is left."""
    built = [one for one in found if one.match.tensor not in unbuilt]
    lacking = [role for role in selection.roles if role not in {one.match.role for one in built}]
    if lacking:
        raise none_built(lacking, unbuilt)
    if selection.layers is None:
        return built
    wanted, there = parse_layers(selection.layers), {one.match.layer for one in built}
    missing = sorted(wanted - there)
    if missing:
        surplus = [one.match.tensor for one in found if one.match.layer in missing and one.match.tensor in unbuilt]
        why = f" that the class builds: {surplus[0]} and the like {unbuilt[surplus[0]]}" if surplus else ""
        raise OptionError(
            f"--layers: there is no layer {listed([str(number) for number in missing])}{why}.",
            f"The layers with these projections are {min(there)} to {max(there)}.",
        )
    return [one for one in built if one.match.layer in wanted]


def _held(
    checkpoint: Checkpoint, matches: Sequence[Match], stored_names: Mapping[str, str], unbuilt: Container[str],
    selection: Selection,
) -> list[Match]:  # fmt: skip
    """Those that a shard holds; CheckpointError where one that is wanted is in the index alone."""
    layers = None if selection.layers is None else parse_layers(selection.layers)
    ghosts = {
        match.tensor: name
        for match in matches
        if (name := stored_names.get(match.tensor, match.tensor)) in checkpoint.ghosts
    }
    wanted = [match for match in matches if match.tensor not in unbuilt and (layers is None or match.layer in layers)]
    lost = [ghosts[match.tensor] for match in wanted if match.tensor in ghosts]
    if lost:
        shown = listed([f"{name} (in {checkpoint.ghosts[name]})" for name in lost])
        raise CheckpointError(
            f"{checkpoint.location}: {checkpoint.index_name} names {len(lost)} of {len(wanted)} projections that no "
            f"shard holds: {shown}.",
            "Shards and index come from different exports: fetch them again together.",
        )
    return [match for match in matches if match.tensor not in ghosts]


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
        if (module in modules and match.layout is None) or match.place in places:
            faults.append(f"{stored.name} is a second tensor for {' '.join(map(str, match.place)).strip()}")
        modules.add(module)
        places.add(match.place)
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
        part = match.layout.part(text_config(config), match.role, lines, match.layer, match.tensor)
        shape = (part.lines, inputs)
    return Target(
        role=match.role, layer=match.layer, stack=match.stack, module=found.module, shape=shape, stored=stored,
        part=part, quantised=held,
    )  # fmt: skip
