"""How fast the adapters of AILoRA would move their matrices at one learning rate, from the spectra of an analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..metrics.motion import lr_scales, motions, role_motion
from .drawing import layout_for, line_name, series
from .figures import by_layer
from .rows import PARTS, Row
from .words import number

Figure = dict[str, Any]
_TITLE = "‖ΔW‖ / (‖W‖ · learning rate)"


def by_rank(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Motion of each role (root mean square over its matrices) at every rank that all matrices have."""
    known = [(row.role, _motions(row)) for row in rows if row.role in PARTS]
    ranks = min((len(found) for _, found in known), default=0)
    return [role_motion((role, found[at]) for role, found in known) for at in range(ranks)]


def motion_texts(motion: Mapping[str, float]) -> dict[str, str]:
    """What the slider says of one rank; empty unless there are both roles."""
    if set(motion) != set(PARTS):
        return {}
    if not all(motion.values()):
        return {"motion": "–", "motion-range": "a matrix that is zero does not move"}
    scales = lr_scales(motion)
    told = f"learning rates × {number(scales['q'])} and × {number(scales['v'])} would equalise it"
    return {"motion": f"{number(motion['q'] / motion['v'])} : 1", "motion-range": told}


def motion_at(rows: Sequence[Row], rank: int) -> dict[str, float]:
    """Motion of each role at the largest stated rank up to `rank`."""
    of = [row for row in rows if row.role in PARTS]
    return role_motion((row.role, _motions(row)[row.cuts.at(rank)]) for row in of)


def motion_by_layer(rows: Sequence[Row], rank: int) -> Figure:
    """Motion of each matrix at the largest stated rank up to `rank`."""
    of = [row for row in rows if row.role in PARTS]
    return by_layer(of, lambda row: _motions(row)[row.cuts.at(rank)], _TITLE)


def motion_by_rank(rows: Sequence[Row]) -> Figure:
    """Motion of each role against the rank."""
    ranks = min((row.cuts.ranks for row in rows if row.role in PARTS), key=len)
    found = by_rank(rows)
    data = [
        series(ranks, [motion[role] or None for motion in found], role, line_name(role), "rank") for role in found[0]
    ]
    layout = layout_for("rank r", _TITLE, log_y=True, legend=True)
    layout["xaxis"] |= {"type": "log"}
    return {"data": data, "layout": layout}


def _motions(row: Row) -> list[float]:
    S = np.asarray(row.singular_values, float)
    return list(motions(S, row.cuts.ranks, row.shape)[PARTS[row.role]])
