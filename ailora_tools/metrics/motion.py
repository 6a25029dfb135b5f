"""How far each adapter moves its W at one learning rate, and the learning rates that make all roles move alike.

With sqrt(S) on both sides, B A moves in proportion to sqrt(S): the principal components of W^Q then run far ahead of
the minor ones of W^V. `motion` is measured on the stored factors (see `decompose.Numbers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .spectral import Array


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


def motions(S: Array, ranks: Sequence[int], shape: tuple[int, int]) -> Mapping[str, list[float]]:
    """How far an adapter of the top r, or of the bottom r, moves W (m, n) at the first step of Adam, for every r.

    sqrt((m + n) sum(S_r)) / norm(S): expected norm(change of W) / norm(W) for a learning rate of 1 where sqrt(S_r) is
    on both sides and the scaling is 1 (`decompose` measures the same on the stored factors); 0.0 where W is zero.
    """
    size = float(np.sqrt((S**2).sum())) or 1.0
    held = {"top": np.cumsum(S), "bottom": np.cumsum(S[::-1])}
    return {part: [float(np.sqrt(sum(shape) * sums[r - 1])) / size for r in ranks] for part, sums in held.items()}
