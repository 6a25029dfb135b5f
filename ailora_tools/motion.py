"""How far each adapter moves its W at one learning rate, and the learning rates that make all roles move alike.

With sqrt(S) on both sides, B A moves in proportion to sqrt(S): the principal components of W^Q then run far ahead of
the minor ones of W^V. `motion` is measured on the stored factors (see `decompose.Numbers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .output.manifest import ModuleRecord

FILE = "lr_groups.json"


def role_motion(motions: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Root mean square over the matrices of each role, of pairs (role, motion)."""
    roles: dict[str, list[float]] = {}
    for role, motion in motions:
        roles.setdefault(role, []).append(motion)
    return {role: math.sqrt(sum(value**2 for value in found) / len(found)) for role, found in roles.items()}


def lr_scales(motion: Mapping[str, float]) -> dict[str, float]:
    """Factors for the learning rate, of geometric mean 1, under which every role moves alike; 1 for one that stands."""
    moving = [value for value in motion.values() if value > 0]
    common = math.exp(sum(map(math.log, moving)) / len(moving)) if moving else 0.0
    return {role: common / value if value > 0 else 1.0 for role, value in motion.items()}


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
