"""Whether the numbers of a start are good: a word for the table, and a sentence where there is something to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from ..methods import ERROR_TAKEN, SURVIVAL_WANTED, symbol
from ..report.words import number

if TYPE_CHECKING:
    from ..output.manifest import ModuleRecord

Records = Sequence["ModuleRecord"]
STEP = "first step / lr"  # the one number that is judged by how it differs between roles
_CLOSE = 0.01  # gap at the cut, below which neighbours can hardly be told apart
_APART = 2  # first steps of two roles, from which on one learning rate is too much for one or too little for the other


def _gap(records: Records) -> tuple[str, str]:
    close = [record for record in records if record.gap is not None and record.gap < _CLOSE]
    if not close:
        return "good", ""
    return "close", (
        f"gap: in {len(close)} of {len(records)} matrices the first component that stayed is nearly as strong as the "
        "last that moved. That does no harm, but which of the two moved is chance."
    )


def _survival(records: Records) -> tuple[str, str]:
    found = [record for record in records if record.survival is not None and record.survival < SURVIVAL_WANTED]
    low = [record for record in found if record.grid_error is None]  # what a grid swallows is told by itself
    if not low:
        return "low" if found else "good", ""
    return "low", (
        f"survival: rounding took back a part of the surgery in {len(low)} of {len(records)} matrices. "
        "--rounding auto or --base-dtype float32 keeps it."
    )


def _error(records: Records) -> tuple[str, str]:
    poor = [one for one in records if one.reconstruction_error > ERROR_TAKEN and one.grid_error is None]
    if not poor:
        return "good", ""
    return "poor", f"error: step 0 is not the original in {len(poor)} of {len(records)} matrices: --base-dtype float32."


def _motion(records: Records) -> tuple[str, str]:
    roles = dict.fromkeys(record.role for record in records)
    steps = {role: fmean(record.motion**2 for record in records if record.role == role) ** 0.5 for role in roles}
    fast, slow = max(steps, key=lambda role: steps[role]), min(steps, key=lambda role: steps[role])
    if not steps[slow] or steps[fast] <= _APART * steps[slow]:
        return "good", ""
    times = number(steps[fast] / steps[slow])
    return "apart", (
        f"first step: at one learning rate {symbol(fast)} moves {times} times as far as {symbol(slow)}. "
        "lr_groups(model, adapter, lr) of ailora_tools evens that out."
    )


def _dead(records: Records) -> tuple[str, str]:
    dead = sum(record.dead for record in records)
    if not dead:
        return "good", ""
    return "some", f"dead: {dead} components are zero from the start and get no gradient; a smaller --rank wastes less."


VERDICTS: Mapping[str, Callable[[Records], tuple[str, str]]] = {
    "gap at the cut": _gap,
    "survival in the base": _survival,
    "reconstruction error": _error,
    STEP: _motion,
    "dead components": _dead,
}
