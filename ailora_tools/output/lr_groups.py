"""lr_groups.json: the factors of the learning rate under which all roles move alike, by role and by module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..metrics.motion import lr_scales, role_motion
from .manifest import ModuleRecord


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
