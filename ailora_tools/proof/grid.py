"""Whether a residual lies on the grid of four bits that its manifest names, and lost what was recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ..checkpoint.stream import load_matrix
from ..errors import AiloraError, listed
from ..linalg.grid import GRIDS, on_grid
from ..linalg.scale import norm
from ..matrices.gather import gather
from ..methods import RULES
from ..output.manifest import ModuleRecord
from .folder import Check
from .subject import Subject

_SLACK = 1e-3  # of a recorded error: the order of sums


def check_grid(subject: Subject) -> Check:
    """Every touched matrix, quantised again, is itself; with the source, that W itself loses what was recorded."""
    kind = str(subject.manifest.settings.get("grid"))
    touched = [record for record in subject.manifest.modules if RULES[record.rule].moved]
    wrong = [f"{one.module} {fault}" for one in touched for fault in _faults(subject, one, kind)]
    detail = f"{len(touched)} matrices, in {kind.upper()} again, are themselves"
    return Check("grid", not wrong, listed(wrong) or detail)


def _faults(subject: Subject, record: ModuleRecord, kind: str) -> Iterator[str]:
    Q = _matrix(subject, record)
    if kind not in GRIDS or Q is None or not Q.dtype.is_floating_point:
        yield "cannot be read"
    elif not bool((on_grid(Q, kind) == Q).all()):
        yield f"is not on the grid of {kind}"
    elif subject.source is not None and record.tensor in subject.source.tensors:
        W = load_matrix(subject.source.files, subject.source.tensors[record.tensor])
        W = gather(W, record.part) if W.ndim == 2 else W
        lost = norm(W.double() - on_grid(W.to(Q.dtype), kind).double()) / (norm(W) or 1.0)
        if record.plain_error is None or not math.isclose(lost, record.plain_error, rel_tol=_SLACK, abs_tol=1e-12):
            yield f"itself loses {lost:.3e} on it, recorded {record.plain_error}"


def _matrix(subject: Subject, record: ModuleRecord) -> Tensor | None:
    """What the base holds of it, (out, in)."""
    header = subject.base_headers.get(record.file)
    if header is None or record.tensor not in header.tensors:
        return None
    try:
        stored = load_matrix(subject.files, header.tensors[record.tensor])
        return gather(stored, record.part) if stored.ndim == 2 else None
    except (AiloraError, RuntimeError, IndexError):
        return None


def grid_fault(record: ModuleRecord, error: float | None) -> str:
    """What is wrong with what was recorded of a matrix on a grid, and found (None: not at hand); "" if nothing."""
    recorded = record.reconstruction_error
    if record.grid_error != recorded or not 0 <= recorded < 1:
        return f", of which {record.grid_error} is said to be the grid's"
    if error is not None and not error <= recorded * (1 + _SLACK):
        return ", more than recorded"
    return ""
