"""One projection out of a stored tensor and back: rows or columns of a fused matrix, all of a plain one."""

from __future__ import annotations

import torch
from torch import Tensor

from .layouts import Part


def gather(stored: Tensor, part: Part | None) -> Tensor:
    """W (out, in) of one projection, in the dtype of `stored`; `stored` itself where nothing is fused."""
    if part is None:
        return stored
    lines = stored.T if part.transposed else stored
    return torch.cat([lines[start:stop] for start, stop in part.runs])


def scatter(stored: Tensor, part: Part | None, W: Tensor) -> Tensor:
    """`stored` with W (out, in) in the place that `part` names; it is changed, unless W is all of it."""
    if part is None:
        return W
    lines = stored.T if part.transposed else stored
    taken = 0
    for start, stop in part.runs:
        lines[start:stop] = W[taken : taken + stop - start]
        taken += stop - start
    return stored
