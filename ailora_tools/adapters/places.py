"""Where the tensors of an adapter belong in a base, and what becomes of tensors that share one: all faults at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint.header import FLOATS, StoredTensor
from ..checkpoint.index import Checkpoint
from ..errors import TargetError, listed
from ..targets.architectures import BY_MODEL_TYPE
from ..targets.module_names import part_type, possible_names
from ..targets.ties import Tied, tied_parameters
from .binding import Binding, Directory, bind
from .folder import Adapter, Factors
from .peft import hits
from .pooled import about_group

_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "jais"}  # whose layers store the weight (in, out)
_NOT_CONV1D = ("lm_head", "score", "classifier", "qa_outputs")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one parameter, in this order.

    whole: takes its place. tokens: replaces the rows `rows`. factors: s B A is added; shift: s times the bias of B is
    added to a bias.
    """

    whole: StoredTensor | None = None
    tokens: StoredTensor | None = None
    rows: tuple[int, ...] = ()
    factors: Factors | None = None
    shift: Factors | None = None


@dataclass(frozen=True)
class Place:
    """A parameter of the merged model: its name in the file, the tensor of the base that it starts from, what changes.

    transposed: the weight is stored (in, out), as a Conv1D's is.
    """

    name: str
    stored: StoredTensor
    change: Change
    transposed: bool = False

    @property
    def added(self) -> bool:
        """Whether the base has no tensor of that name: it shares that of another parameter there."""
        return self.name != self.stored.name


@dataclass(frozen=True)
class Places:
    """Every parameter that is written anew, in file order; untied: those that shared a tensor have their own now."""

    places: tuple[Place, ...]
    binding: Binding
    untied: tuple[str, ...] = ()


HINT = (
    "Give the base that the adapter was trained on. New heads (modules_to_save) have no place in a base without them: "
    "load base and adapter with PEFT instead, or save the base with that head first."
)


def base_directory(checkpoint: Checkpoint, groups: list[Tied]) -> Directory:
    """Every parameter of the base by its names, those included that share a tensor of the file."""
    names: dict[str, tuple[str, ...]] = dict(possible_names(checkpoint))
    for name in (other for group in groups for other in group.others if other not in names):
        names[name] = (re.sub(r"^embed_out\.", "lm_head.", name), name)  # GPT-NeoX, by the major of transformers
    return Directory(names)


def find_places(checkpoint: Checkpoint, adapter: Adapter) -> Places:
    """One place for each module and each further tensor of the adapter.

    Raises TargetError that names everything that the base has no place for.
    """
    groups = tied_parameters(checkpoint)
    binding = bind(adapter, base_directory(checkpoint, groups), checkpoint.location, HINT)
    faults: list[str] = []
    changes = _changes(adapter, binding, faults)
    apart = [name for group in groups for name in _untie(group, changes, checkpoint, adapter, faults)]
    if apart:  # one setting of config.json is for all of them
        for group in groups:
            for name in group.others:
                changes.setdefault(name, changes.get(group.source, Change()))
    homes = {name: group.source for group in groups for name in group.others}
    places = []
    for name, change in changes.items():
        stored = checkpoint.tensors.get(name) or checkpoint.tensors.get(homes.get(name, ""))
        if stored is None:
            faults.append(f"{stored_name(change)} needs {name}, which the base has not")
        elif change != Change() or name not in checkpoint.tensors:
            fault, place = _fitting(checkpoint, adapter, Place(name, stored, change))
            faults += [fault] if fault else []
            places.append(place)
    if faults:
        raise TargetError(f"{adapter.location} does not fit {checkpoint.location}: {listed(faults, 4)}.", HINT)
    places.sort(key=lambda place: (place.stored.file, place.stored.start, place.name))
    return Places(tuple(places), binding, tuple(dict.fromkeys(apart)))


def _changes(adapter: Adapter, binding: Binding, faults: list[str]) -> dict[str, Change]:
    """Name of a parameter -> all that the adapter does to it."""
    found: dict[str, Change] = {}

    def add(name: str, **part: Any) -> None:
        found[name] = replace(found.get(name, Change()), **part)

    for key, name in binding.others.items():
        add(name, whole=adapter.others[key])
    for module, name in binding.modules.items():
        factors = binding.factors[module]
        add(name, factors=factors)
        if factors.bias is not None:
            add(f"{name.removesuffix('weight')}bias", shift=factors)
    for module, name in binding.tokens.items():
        rows = _rows(adapter, module)
        if len(rows) != adapter.tokens[module].shape[0]:
            faults.append(f"{module} has {adapter.tokens[module].shape[0]} new rows, for {len(rows)} tokens")
        add(name, tokens=adapter.tokens[module], rows=rows)
    return found


def _rows(adapter: Adapter, module: str) -> tuple[int, ...]:
    """The tokens of `trainable_token_indices`: a list for the one embedding, or lists by the name of the module. With
    save_embedding_layers PEFT writes the rows of what is tied to it as well, which has no list of its own."""
    stated = adapter.config.get("trainable_token_indices")
    if isinstance(stated, Mapping):
        near = [rows for name, rows in stated.items() if hits(name, module)] or list(stated.values())
        stated = near[0] if len(near) == 1 else []
    return tuple(stated or ())


def _untie(
    group: Tied, changes: dict[str, Change], checkpoint: Checkpoint, adapter: Adapter, faults: list[str]
) -> tuple[str, ...]:
    """The parameters of the group if they no longer have one value, which `changes` then tells of each; else nothing.

    New rows of an embedding are shared by whatever is tied to it, as PEFT has it.
    """
    members = (group.source, *group.others)
    touched = {name: changes.pop(name) for name in members if name in changes}
    if not touched:
        return ()
    rows = touched.get(group.embedding, Change())
    # PEFT gives the new rows to a separate output layer, too, if its class can be tied.
    elsewhere = bool(group.inseparable and rows.tokens and "lm_head.weight" in checkpoint.tensors)
    if not elsewhere and _of_all(group, touched, adapter):
        first = next(iter(touched.values()))
        held = [name for name in members if name in checkpoint.tensors]
        changes |= {name: touched.get(name, first) for name in held}  # others still share the tensor of the source
        return ()
    if group.inseparable:
        told = listed([stored_name(change) for change in touched.values()])
        faults.append(f"{told} changes one of {listed(members)}, which share a tensor: {group.inseparable}")
        return ()
    changes |= {name: _with_rows(touched.get(name, Change()), rows) for name in members}
    return members


def _with_rows(change: Change, of: Change) -> Change:
    """The change with the new rows of the embedding that the parameter is tied to, unless it has its own."""
    return change if change.tokens else replace(change, tokens=of.tokens, rows=of.rows)


def _of_all(group: Tied, touched: Mapping[str, Change], adapter: Adapter) -> bool:
    """Whether all that is tied changes alike: one change that the rest follows, or the same whole values for each. What
    is tied follows the input embedding, and nothing the output layer."""
    name, first = next(iter(touched.items()))
    if len(touched) == 1:
        told = bool(adapter.config.get("ensure_weight_tying")) and first.factors is None
        return (name == group.embedding and first == Change(tokens=first.tokens, rows=first.rows)) or told
    return len(touched) == 1 + len(group.others) and _same(list(touched.values()), adapter)


def stored_name(change: Change) -> str:
    """A tensor of the adapter that makes the change."""
    factors = change.factors or change.shift
    stored = change.whole or (factors.B if factors else None) or change.tokens
    return stored.name if stored else ""


def _same(changes: list[Change], adapter: Adapter) -> bool:
    """Whether they put the same values into every place."""
    first, *rest = [change.whole for change in changes]
    plain = all(change == Change(whole=change.whole) for change in changes)
    return plain and first is not None and all(other is not None and adapter.same(first, other) for other in rest)


def _fitting(checkpoint: Checkpoint, adapter: Adapter, place: Place) -> tuple[str, Place]:
    """What is wrong, "" if nothing; and the place with the orientation of its weight."""
    stored, change = place.stored, place.change
    if stored.dtype not in FLOATS:
        return f"{stored.name} is stored as {stored.dtype}, which holds no merged weight", place
    if change.whole is not None and change.whole.shape != stored.shape:
        return _shapes(place, change.whole.shape), place
    if change.tokens is not None and (len(stored.shape) != 2 or change.tokens.shape[1:] != stored.shape[1:]):
        return _shapes(place, change.tokens.shape), place
    if change.rows and not 0 <= min(change.rows) <= max(change.rows) < stored.shape[0]:
        return f"{stored_name(change)} is for token {max(change.rows)}, {stored.name} has {stored.shape[0]} rows", place
    if change.factors is None:
        return "", place
    turned = _transposed(checkpoint, adapter, place, change.factors)
    sides = change.factors.sides[::-1] if turned else change.factors.sides
    if stored.shape != sides:
        return _shapes(place, sides) + about_group(adapter.config, stored.shape, sides), place
    if change.factors.embedding and change.factors.magnitude is not None:
        return f"{stored_name(change)} is DoRA on an embedding, which cannot be merged here", place
    return "", replace(place, transposed=turned)


def _shapes(place: Place, shape: tuple[int, ...]) -> str:
    return f"{place.stored.name} has shape {list(place.stored.shape)}, the adapter is for {list(shape)}"


def _transposed(checkpoint: Checkpoint, adapter: Adapter, place: Place, factors: Factors) -> bool:
    """Whether the weight lies (in, out). Of a square one the shape says nothing, nor does fan_in_fan_out, which PEFT
    corrects for each kind of layer: the model does, or the part of it that the weight is in, where it is known."""
    sides = factors.sides
    if factors.embedding or sides[0] != sides[1]:
        return factors.embedding or (place.stored.shape == sides[::-1])
    kind = part_type(checkpoint, place.name)
    if kind in _CONV1D:
        return not any(name in place.name for name in _NOT_CONV1D)
    return bool(adapter.config.get("fan_in_fan_out")) and kind not in BY_MODEL_TYPE
