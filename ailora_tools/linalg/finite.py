"""The one test for NaN and infinity, and what it says."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import NumericalError

_AGAIN = "Download the file again; if it was trained like this, use an earlier checkpoint."


def require_finite(W: Tensor, name: str, hint: str = _AGAIN) -> None:
    """NumericalError that says how many values of W, any shape and float dtype, are NaN or infinite, and where the
    first lies. `name` is the tensor as messages name it, `hint` the way out."""
    low, high = (float(value) for value in W.aminmax()) if W.numel() else (0.0, 0.0)
    if math.isfinite(low) and math.isfinite(high):
        return
    bad = ~torch.isfinite(W)
    first = bad.nonzero()[0].tolist()
    raise NumericalError(
        f"{name}: {int(bad.sum()):,} of {W.numel():,} values are NaN or infinite, the first at {first}.", hint
    )
