"""Whether a residual lies on the grid of four bits that its manifest names, and lost what was recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import listed
from ..linalg.grid import GRIDS, on_grid
from ..linalg.scale import norm
from ..methods import RULES
from ..output.manifest import ModuleRecord
from .folder import Check
from .subject import Subject

if TYPE_CHECKING:
    from .look import ModuleLook

_SLACK = 1e-3  # of a recorded error: the order of sums


def check_grid(subject: Subject, found: Sequence[ModuleLook]) -> Check:
    """Every touched matrix, quantised again, is itself; with the source, that W itself loses what was recorded."""
    kind = str(subject.manifest.settings["grid"])
    touched = [look for one in found for look in one.projections if RULES[look.record.rule].moved]
    wrong = [f"{look.record.module} {look.off_grid}" for look in touched if look.off_grid]
    detail = f"{len(touched)} matrices, in {kind.upper()} again, are themselves"
    return Check("grid", not wrong, listed(wrong) or detail)


def grid_look(Q: Tensor | None, W: Tensor | None, record: ModuleRecord, kind: str) -> str:
    """What is wrong with Q (out, in), as the base holds it, on the grid `kind` ("": none is asked for); "" if nothing.
    W is the source's (None: not at hand)."""
    if not kind or not RULES[record.rule].moved:
        return ""
    if kind not in GRIDS or Q is None or not Q.dtype.is_floating_point:
        return "cannot be read"
    if not bool((on_grid(Q, kind) == Q).all()):
        return f"is not on the grid of {kind}"
    if W is None:
        return ""
    lost = norm(W.double() - on_grid(W.to(Q.dtype), kind).double()) / (norm(W) or 1.0)
    alike = record.plain_error is not None and math.isclose(lost, record.plain_error, rel_tol=_SLACK, abs_tol=1e-12)
    return "" if alike else f"itself loses {lost:.3e} on it, recorded {record.plain_error}"


def grid_fault(record: ModuleRecord, error: float | None) -> str:
    """What is wrong with what was recorded of a matrix on a grid, and found (None: not at hand); "" if nothing."""
    recorded = record.reconstruction_error
    if record.grid_error != recorded or not 0 <= recorded < 1:
        return f", of which {record.grid_error} is said to be the grid's"
    if error is not None and not error <= recorded * (1 + _SLACK):
        return ", more than recorded"
    return ""
