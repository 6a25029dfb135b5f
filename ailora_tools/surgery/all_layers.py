"""The layers that `init --layers` left out: which modules they have, and of which shape.

LoRAX and TGI stack the factors of one kind of module over all layers, and drop the kind where a layer has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.index import Checkpoint, open_checkpoint
from ..errors import TargetError
from ..output.manifest import Manifest
from ..targets.plan import make_plan, target_modules
from ..targets.selection import Selection

_HINT = "Leave --all-layers out, or give a folder of `init` that lies beside its model."


@dataclass(frozen=True)
class AllLayers:
    """`sides`: (out, in) of every projection of the other layers, by module; `target_modules` for all layers."""

    sides: Mapping[str, tuple[int, int]]
    target_modules: list[str]


def find_all_layers(manifest: Manifest, folder: Path, names: Mapping[str, str]) -> AllLayers:
    """The projections that the start in `folder` would have had without --layers; `names` maps the modules of the
    adapter to those of the start, whose first words may be others. Reads headers alone.

    Raises CheckpointError where the base cannot be read, TargetError where it is not at hand or its names differ.
    """
    checkpoint, settings = _base(manifest, folder), manifest.settings
    selection = Selection(
        tuple(settings["roles"]), None, settings["q_tensor"], settings["v_tensor"], tuple(settings["unbuilt"])
    )
    plan = make_plan(checkpoint, selection, transformers_major=settings["transformers_major"], quantised=True)
    here = {_renamed(carrier.module, names): carrier.sides for carrier in plan.carriers}
    missing = sorted(names.keys() - here.keys())
    if missing:
        raise TargetError(f"{checkpoint.location} has no {missing[0]}, which the adapter has.", _HINT)
    targets = [_renamed(name, names) if "." in name else name for name in target_modules(plan, checkpoint)]
    return AllLayers({module: sides for module, sides in here.items() if module not in names}, targets)


def _base(manifest: Manifest, folder: Path) -> Checkpoint:
    """The residual base, which has the names and shapes of the original; without one the original on this machine.
    A manifest may be a stranger's: nothing on a network is asked because it says so."""
    if manifest.base:
        return open_checkpoint(folder)
    location = str(manifest.source["location"])
    if manifest.source["revision"] is not None or not Path(location).is_absolute():
        raise TargetError(f"{folder}: its base is {location}, which is not on this machine: no names to add.", _HINT)
    return open_checkpoint(location)


def _renamed(module: str, names: Mapping[str, str]) -> str:
    """A module of the start in the words of the adapter, which a class around the model makes longer or shorter."""
    trained, start = next(iter(names.items()))
    if trained.endswith(start):
        return trained.removesuffix(start) + module
    if start.endswith(trained) and module.startswith(start.removesuffix(trained)):
        return module.removeprefix(start.removesuffix(trained))
    raise TargetError(f"{trained} of the adapter is {start} at the start: {module} has no name like that.", _HINT)
