"""Whether an adapter has all that its config promises for a base, and lost no part on the way."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint.index import Checkpoint
from ..targets.module_names import holds_several, parameter_paths
from .binding import bind
from .folder import Adapter
from .lost import require_whole
from .places import HINT, Places, base_directory
from .promises import Base, require_promised


def require_complete(checkpoint: Checkpoint, adapter: Adapter, found: Places, start: Adapter | None) -> list[str]:
    """TargetError that names what is missing; notices about modules that change nothing.

    `found` are the places of the adapter in the base, `start` what its training started from, if that is at hand.
    """
    paths, bound = parameter_paths(checkpoint), found.binding.modules
    modules = {module: paths.get(name, name).removesuffix(".weight") for module, name in bound.items()}
    require_promised(adapter, modules, _base(checkpoint, paths))
    homes: dict[str, str] = {}
    if start is not None:
        of_start = bind(start, base_directory(checkpoint, []), checkpoint.location, HINT, only_modules=True).modules
        homes = {name: module for module, name in of_start.items()}
    starts = {module: homes[name] for module, name in bound.items() if name in homes}
    fused = [module for module, name in bound.items() if holds_several(checkpoint, name)]
    return require_whole(adapter, found.binding.factors, start, starts, fused)


def _base(checkpoint: Checkpoint, paths: Mapping[str, str]) -> Base:
    matrices = [name for name in paths if name.endswith(".weight") and len(checkpoint.tensors[name].shape) == 2]
    return Base(
        tuple(paths[name].removesuffix(".weight") for name in matrices),
        tuple(path.removesuffix(".bias") for path in paths.values() if path.endswith(".bias")),
        checkpoint.config,
    )
