"""The one test for NaN and infinity, and the one way from arithmetic into a stored dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import NumericalError
from .rounding import Dither, round_stochastic
from .scale import peak

_AGAIN = "Download the file again; if it was trained like this, use an earlier checkpoint."
_MEASURABLE = 1e60


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


def require_measurable(W: Tensor, name: str) -> None:
    """NumericalError unless W, finite, any shape and float dtype, is zero or of a size whose fourth powers float64
    holds, as norms, energies and kurtosis need. Only float64 has other numbers."""
    largest, low, high = peak(W), 1 / _MEASURABLE, _MEASURABLE
    if largest and not low < largest < high:
        raise NumericalError(
            f"{name}: its largest value is {largest:.3g}; between {low:.0e} and {high:.0e} it can be measured.",
            "Scale the weights, or leave the layer out with --layers.",
        )


def stored(exact: Tensor, dtype: torch.dtype, name: str, hint: str, dither: Dither | None = None) -> Tensor:
    """`exact`, any shape and float dtype, rounded to `dtype`: to nearest, or with a dither at random (float32 to 16
    bits). Everything computed that is written goes through here.

    NumericalError where a value is not finite or rounds to infinity in `dtype`, in either rounding: cut off at the
    largest number it would be another value. `name` is the tensor as messages name it, `hint` the way out.
    """
    require_finite(exact, name, hint)
    if exact.numel():
        largest = peak(exact)
        if not math.isfinite(torch.tensor(largest, dtype=torch.float64).to(dtype)):
            kind = str(dtype).removeprefix("torch.")
            raise NumericalError(
                f"{name}: values up to {largest:.5g} do not fit {kind}, which ends at {torch.finfo(dtype).max:.5g}.",
                hint,
            )
    return exact.to(dtype) if dither is None else round_stochastic(exact.float(), dtype, dither)
