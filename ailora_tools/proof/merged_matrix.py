"""One tensor of a merged model, looked at: whether it is the base's with the adapter in it, and if not, what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters.folder import Adapter
from ..adapters.places import Change, Places
from ..adapters.zeros import folded
from ..checkpoint.files import Files
from ..checkpoint.header import StoredTensor
from ..checkpoint.stream import DTYPES, load_matrix
from ..linalg.agreement import SINGLE, agreement, as_rows, half_ulp, roundoff
from ..matrices.dequantise import dequantise
from .causes import Suspect, cause
from .change import change_of
from .companions import same_bytes
from .paired import Pair


@dataclass(frozen=True)
class Found:
    """What was found of one tensor: what is wrong with it, "" if nothing.

    touched: whether the adapter is for it. excess: the largest distance of an entry, in units of what rounding can do
    there. product: the number type that s B A was rounded in before it was added, "" if that is not to be seen. share:
    how often the change is in the stored tensor, 1 but for what rounding took. same: nothing but rounding differs from
    the base; idle: so it should, the adapter changes nothing here; swallowed: it changes less than the dtype shows.
    """

    tensor: str
    touched: bool
    fault: str = ""
    excess: float | None = None
    product: str = ""
    share: float | None = None
    same: bool = False
    idle: bool = False
    swallowed: bool = False

    def to_json(self) -> dict[str, Any]:
        """For other processes, and for `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Looking:
    """What is needed to look at a pair."""

    base: Files
    merged: Files
    adapter: Adapter
    places: Places

    def look(self, pair: Pair) -> Found:
        """CheckpointError, NumericalError where base or adapter cannot be read or hold no numbers."""
        if pair.here.shape != pair.source.place.stored.shape:
            shapes = f"{list(pair.here.shape)}, the base {list(pair.source.place.stored.shape)}"
            return Found(pair.name, pair.touched, f"has shape {shapes}")
        if pair.plain:
            return self._plain(pair)
        return self._numbers(pair)

    def _plain(self, pair: Pair) -> Found:
        here, there = _span(pair.here), _span(pair.source.stored)
        same = same_bytes(self.merged, here, self.base, there)
        return Found(pair.name, False, "" if same else "is not the base's", same=same)

    def _numbers(self, pair: Pair) -> Found:
        if pair.here.dtype not in _FLOATS:
            return Found(pair.name, pair.touched, f"is stored as {pair.here.dtype}")
        held = load_matrix(self.base, pair.source.stored)
        W = as_rows(dequantise(held, pair.source.quantised, self.base))
        if not W.dtype.is_floating_point:
            return Found(
                pair.name, pair.touched, f"is stored as {pair.here.dtype}, in the base {pair.source.stored.dtype}"
            )
        M = as_rows(load_matrix(self.merged, pair.here))
        if not bool(torch.isfinite(M).all()):
            return Found(pair.name, pair.touched, "holds NaN or infinity")
        if pair.source.in_zeros:
            return self._zero_points(pair, held, W, M)
        if not pair.touched:
            same = bool((M == W.to(M.dtype)).all())
            return Found(pair.name, False, "" if same else "is not the base's, rounded", same=same)
        change = change_of(self.adapter, pair.source.place)
        units = _units(M.dtype, pair.source.place.change)
        looked = agreement(W, M, change, list(units))
        product = looked.agrees(list(units), change.magnitude is not None)
        fault = "" if product is not None else cause(W, M, change, looked, self._suspect(pair))
        known = {} if product is None else {"product": units[product]}
        idle = looked.asked == 0 and change.whole is None
        worst = looked.excess[product if product is not None else max(units)]
        return Found(
            pair.name, True, fault, worst, **known, share=looked.share if looked.asked else None, same=looked.same,
            idle=idle, swallowed=looked.idle and not idle,
        )  # fmt: skip

    def _zero_points(self, pair: Pair, q: Tensor, W: Tensor, M: Tensor) -> Found:
        """Those in float16 that a QA-LoRA is in: what `merge` makes of them, up to the last place."""
        place, quantised = pair.source.place, pair.source.quantised
        if quantised is None:
            return Found(pair.name, pair.touched, "is no zero point")
        zeros, _, _ = folded(q, W, self.adapter, self.base, place, quantised)
        expected = as_rows(zeros).double()
        worst = float(((M.double() - expected).abs() / half_ulp(expected, zeros.dtype)).max())
        fault = "" if worst <= 2 else f"is {worst / 2:.3g} units in the last place off what the adapter makes of it"
        return Found(pair.name, pair.touched, fault, worst / 2, idle=place.change.factors is None)

    def _suspect(self, pair: Pair) -> Suspect:
        """What may have been put there instead: the adapter's other modules of these sides."""
        place, binding = pair.source.place, self.places.binding
        factors = place.change.factors
        others = {
            module: one
            for module, one in binding.factors.items()
            if factors is not None and one.sides == factors.sides and binding.modules[module] != place.name
        }
        return Suspect(place, self.adapter, others, binding.modules)


_FLOATS = ("F64", "F32", "F16", "BF16")
_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def _units(dtype: torch.dtype, change: Change) -> dict[float, str]:
    """Unit roundoffs that the product may have had -> the name of the dtype, "" for float32."""
    stored = [part.dtype for part in _parts(change)]
    kinds = {dtype, *(DTYPES[kind] for kind in stored)}
    return {SINGLE: "", **{roundoff(kind): _NAMES[kind] for kind in kinds if kind in _NAMES}}


def _parts(change: Change) -> Sequence[StoredTensor]:
    factors = change.factors or change.shift
    return () if factors is None else (factors.A, factors.B)


def _span(stored: StoredTensor) -> tuple[str, int, int]:
    return stored.file, stored.start, stored.stop
