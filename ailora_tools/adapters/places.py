"""Where the tensors of an adapter belong in a base: found from names and shapes, all faults at once."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint.header import FLOATS, StoredTensor
from ..checkpoint.index import Checkpoint
from ..errors import TargetError, listed
from ..targets.module_names import module_paths
from .folder import Adapter, Factors, match_module


@dataclass(frozen=True)
class Place:
    """A tensor of the base that changes: by the factors of a module, or into a whole tensor of the adapter.

    transposed: the weight is stored (in, out), as a Conv1D's is.
    """

    stored: StoredTensor
    change: Factors | StoredTensor
    transposed: bool = False


def find_places(checkpoint: Checkpoint, adapter: Adapter) -> list[Place]:
    """One place for each module and each further tensor of the adapter, in file order.

    Raises TargetError that names everything that the base has no place for.
    """
    paths = module_paths(checkpoint)
    transposed = bool(adapter.config.get("fan_in_fan_out"))
    places, faults = [], []
    for module, factors in adapter.modules.items():
        name = match_module(module, paths)
        sides = factors.sides[::-1] if transposed else factors.sides
        found = _find(checkpoint, module, None if name is None else paths[name], sides)
        if isinstance(found, str):
            faults.append(found)
        else:
            places.append(Place(stored=found, change=factors, transposed=transposed))
    for key, whole in adapter.others.items():
        path, _, kind = key.rpartition(".")
        name = match_module(path, paths)
        found = _find(checkpoint, key, key if name is None else paths[name].removesuffix("weight") + kind, whole.shape)
        if isinstance(found, str):
            faults.append(found)
        else:
            places.append(Place(stored=found, change=whole))
    if faults:
        raise TargetError(
            f"{adapter.location} does not fit {checkpoint.location}: {listed(faults, 4)}.",
            "Give the base that the adapter was trained on. New heads (modules_to_save) have no place in a base "
            "without them: load base and adapter with PEFT instead, or save the base with that head first.",
        )
    return sorted(places, key=lambda place: (place.stored.file, place.stored.start))


def _find(checkpoint: Checkpoint, key: str, tensor: str | None, shape: tuple[int, ...]) -> StoredTensor | str:
    """The tensor of the base, or what is wrong."""
    if "lora_" in key:
        return f"{key} cannot be merged"
    if tensor is None or tensor not in checkpoint.tensors:
        return f"{key} is not in the base"
    stored = checkpoint.tensors[tensor]
    if stored.dtype not in FLOATS:
        return f"{tensor} is stored as {stored.dtype}, which holds no merged weight"
    if stored.shape != shape:
        return f"{tensor} has shape {list(stored.shape)}, the adapter is for {list(shape)}"
    return stored
