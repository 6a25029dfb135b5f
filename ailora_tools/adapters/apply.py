"""W with an adapter in it, as PEFT merges it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import NumericalError, TargetError
from ..linalg.scale import norm
from .folder import Adapter, Factors
from .places import Place

if TYPE_CHECKING:
    from torch import Tensor

_START = 0.5  # training moves the principal part of a matrix by a few hundredths, another adapter leaves 1 or more
_SAFE = 1e-15, 1e15  # norms between these have squares that float32 holds


def changed(old: Tensor, adapter: Adapter, place: Place) -> Tensor:
    """The parameter of the merged model, in the dtype and on the device of `old`, the tensor of the base.

    NumericalError as `applied` raises it, and where what the adapter holds is not finite.
    """
    change, new = place.change, old
    if change.whole is not None:
        new = adapter.load(change.whole).to(old)
    if change.tokens is not None:
        new = new.clone()
        new[list(change.rows)] = adapter.load(change.tokens).to(old)
    if change.factors is not None:
        new = applied(new.T, adapter, change.factors).T if place.transposed else applied(new, adapter, change.factors)
    if change.shift is not None and change.shift.bias is not None:
        new = new + change.shift.scaling * adapter.load(change.shift.bias).to(old)
    return new


def applied(W: Tensor, adapter: Adapter, factors: Factors) -> Tensor:
    """W + s B A (out, in), in the dtype and on the device of W; with DoRA m (W + s B A) / norm of its rows
    (arXiv 2402.09353, equation 5). NumericalError if the adapter holds NaN or infinity, or as `rescaled` raises it;
    TargetError as `require_absent` does."""
    A, B = (adapter.load(stored).to(W) for stored in (factors.A, factors.B))
    new = W + factors.scaling * (B @ A)
    if factors.magnitude is None:
        require_absent(W, A, factors.scaling * B, f"{adapter.location}: {factors.B.name}")
        return new
    return rescaled(new, adapter.load(factors.magnitude).to(W), f"{adapter.location}: {factors.magnitude.name}")


def require_absent(W: Tensor, A: Tensor, B: Tensor, name: str) -> None:
    """TargetError if W (out, in) has B A in it, B being scaled: an adapter that started from the weights, and was not
    converted, would count its start twice on the original.

    Then W and B A (B (out, r), A (r, in)) are almost the same in the outputs that B writes, B^T W = B^T B A: of W^Q and
    W^V in a fused W as well. Of other adapters B A is little beside W there, or another direction.
    """
    image = B.T @ W  # (r, in)
    if norm(image - (B.T @ B) @ A) < _START * norm(image):
        raise TargetError(
            f"{name}: what it adds is in the base already, as of an adapter that started from the weights of it, "
            "and would count twice.",
            "Give the residual base that it was trained on. After `init --no-base`, or for the original: `ailora-tools "
            "convert TRAINED --init DIR` first.",
        )


def rescaled(W: Tensor, magnitude: Tensor, name: str) -> Tensor:
    """W (out, in) with rows of the norms `magnitude` (out,), called `name`. A row of zeros stays where its magnitude is
    zero (PEFT divides 0 by 0 there); with any other magnitude it has no direction: NumericalError."""
    norms, wanted = _row_norms(W), magnitude.view(-1, 1)
    lost = ((norms == 0) & (wanted != 0)).flatten().nonzero()
    if len(lost):
        row = int(lost[0])
        raise NumericalError(
            f"{name}: magnitude {float(wanted[row]):.3g} for row {row}, which is zero in base plus adapter "
            f"({len(lost)} of {len(W)} rows): there is nothing to scale.",
            "PEFT makes NaN of such rows: train without DoRA, or leave the module out.",
        )
    rows: Tensor = W * (wanted / norms.where(norms != 0, 1.0))
    return rows


def _row_norms(W: Tensor) -> Tensor:
    """Norms (out, 1) of the rows of W, also where squares of its entries leave its dtype."""
    norms: Tensor = W.norm(dim=1, keepdim=True)
    low, high = _SAFE
    if bool(((norms > low) & (norms < high)).all()):
        return norms
    peaks = W.abs().amax(dim=1, keepdim=True)
    scaled: Tensor = peaks * (W / peaks.where(peaks != 0, 1.0)).norm(dim=1, keepdim=True)
    return norms.where((norms > low) & (norms < high), scaled)
