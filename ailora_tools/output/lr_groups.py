"""lr_groups.json: the factors of the learning rate under which all roles move alike, by role and by module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.gate import Factor, View, read_document
from ..metrics.motion import lr_scales, role_motion
from .manifest import ModuleRecord
from .names import LR_GROUPS


class LrGroups(View):
    """modules: factor of the learning rate by module path. shared: those that hold several projections."""

    modules: dict[str, Factor]
    shared: list[str]


def read_lr_groups(folder: Path) -> LrGroups:
    """CheckpointError if there is no lr_groups.json in `folder`, or if it is none."""
    return read_document(
        folder / LR_GROUPS, LrGroups, "Give the ailora_init of a folder that `ailora-tools init` wrote."
    )


def lr_document(records: Sequence[ModuleRecord]) -> dict[str, Any]:
    """lr_groups.json: motion and factor by role, factor by module (of several projections: their geometric mean), and
    which modules are shared by several roles."""
    motion = role_motion((record.role, record.motion) for record in records)
    scales = lr_scales(motion)
    modules: dict[str, list[float]] = {}
    for record in records:
        modules.setdefault(record.module, []).append(scales[record.role])
    return {
        "about": "learning rate of A and B in a module = yours * scale; motion = expected norm(change of W) / norm(W) "
        "by A and B at the first step of Adam, for a learning rate of 1",
        "roles": {role: {"motion": motion[role], "scale": scales[role]} for role in motion},
        "modules": {module: math.prod(found) ** (1 / len(found)) for module, found in modules.items()},
        "shared": [module for module, found in modules.items() if len(set(found)) > 1],
    }
