"""What an adapter makes of one tensor of the base, as `linalg.agreement` takes it."""

from __future__ import annotations

from torch import Tensor

from ..adapters.folder import Adapter, Factors
from ..adapters.places import Place
from ..linalg.agreement import Change, as_rows


def change_of(adapter: Adapter, place: Place) -> Change:
    """Everything that changes, loaded; NumericalError if the adapter holds NaN or infinity."""
    told = place.change
    whole = None if told.whole is None else as_rows(adapter.load(told.whole))
    new = None if told.tokens is None else adapter.load(told.tokens).double()
    shift = None
    if told.shift is not None and told.shift.bias is not None:
        shift = as_rows(told.shift.scaling * adapter.load(told.shift.bias).double())
    left = right = magnitude = None
    if told.factors is not None:
        left, right = sides(adapter, told.factors, place.transposed)
        if told.factors.magnitude is not None:
            norms = adapter.load(told.factors.magnitude).double().flatten()
            magnitude = norms.view(1, -1) if place.transposed else norms.view(-1, 1)
    return Change(whole, told.rows, new, left, right, magnitude, shift)


def sides(adapter: Adapter, factors: Factors, transposed: bool) -> tuple[Tensor, Tensor]:
    """Left (m, r), with s in it, and right (r, n), float64, of the product as it lies in the file."""
    A, B = (adapter.load(stored).double() for stored in (factors.A, factors.B))
    return (factors.scaling * A.T, B.T) if transposed else (factors.scaling * B, A)
