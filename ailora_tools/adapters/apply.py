"""W with an adapter in it, as PEFT merges it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .folder import Adapter, Factors

if TYPE_CHECKING:
    from torch import Tensor


def applied(W: Tensor, adapter: Adapter, factors: Factors) -> Tensor:
    """W + s B A (out, in), in the dtype and on the device of W; with DoRA m (W + s B A) / norm of its rows
    (arXiv 2402.09353, equation 5). NumericalError if the adapter holds NaN or infinity."""
    A, B = (adapter.load(stored).to(W) for stored in (factors.A, factors.B))
    new = W + factors.scaling * (B @ A)
    if factors.magnitude is None:
        return new
    return rescaled(new, adapter.load(factors.magnitude).to(W))


def rescaled(W: Tensor, magnitude: Tensor) -> Tensor:
    """W (out, in) with rows of the norms `magnitude` (out,)."""
    rows: Tensor = W * (magnitude.view(-1, 1) / W.norm(dim=1, keepdim=True))
    return rows
