"""One module of both models in, the LoRA between them out: A and B of W1 - W0, cut to a rank, and what that leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..analysis.tuned import load_projection
from ..checkpoint.steps import Steps
from ..checkpoint.tensors import matrix_bytes
from ..errors import NumericalError
from ..linalg.finite import require_finite, stored
from ..linalg.scale import norm
from ..linalg.truncated import Truncation, truncated
from ..matrices.dequantise import dequantise
from ..matrices.gather import gather
from ..metrics.elements import MANTISSA, rounding_rms, stored_dtype
from ..metrics.noise import change_edge
from ..surgery.blocks import spread
from ..surgery.decompose import seeded
from ..targets.projections import Carrier
from .pairs import Pairs

_WIDER = "Store A and B in a wider type: --dtype float32."
_SAMPLE = 1 << 18  # entries by which the size of rounding is told
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Extracted:
    """One module of the LoRA. change: norm(W1 - W0) / norm(W0), Frobenius, of the matrices that were asked for.

    error: norm(W1 - W0 - B A) / norm(W1 - W0) with A and B as stored, and `energy` = 1 - error^2, the share of the
    change that the LoRA holds; truncated: what a perfect LoRA of that rank would leave. singular_values: of W1 - W0,
    those kept. rounded_to: the dtype that the numbers of W1 fit in; rounding: the share of norm(W1 - W0)^2 that
    rounding to it would make by itself, and above_rounding: how many of the kept directions stand out of that.
    """

    module: str
    tensor: str
    shape: tuple[int, int]
    rank: int
    change: float
    error: float
    energy: float
    truncated: float
    singular_values: tuple[float, ...]
    rounded_to: str
    rounding: float
    above_rounding: int
    route: str


@dataclass(frozen=True)
class Unchanged:
    """A module that is in both sides the same; `by_rounding`: but for the dtype that one of them is stored in."""

    module: str
    by_rounding: bool = False


@dataclass(frozen=True)
class Wanted:
    """How much of each change is kept: a rank at most, for modules in `ranks` their own; a share of its energy. dtype:
    of A and B."""

    rank: int | None
    ranks: Mapping[str, int]
    energy: float | None
    dtype: torch.dtype
    seed: int = 0

    def most(self, module: str) -> int | None:
        """The rank of a module at most, None where the energy alone decides."""
        return self.ranks.get(module, self.rank)


Factors = tuple[memoryview, memoryview] | None


class Extracting(Steps[Carrier, None, Extracted | Unchanged, tuple[Extracted | Unchanged, Factors]]):
    """The work on one stored tensor of the base; that of the fine-tune is read for it."""

    def __init__(self, pairs: Pairs, wanted: Wanted) -> None:
        self._pairs, self._wanted = pairs, wanted

    def sides(self, item: Carrier) -> Sequence[int]:
        return item.sides

    def prepare(self, item: Carrier, stored: Tensor) -> Tensor:
        return dequantise(stored, item.quantised, self._pairs.base.files)

    def beside(self, item: Carrier, W: Tensor) -> None:
        return None

    def compute(self, item: Carrier, W: Tensor) -> tuple[Sequence[Tensor], Extracted | Unchanged]:
        """A (k, in) and B (out, k) of the whole module, zero in the outputs that were not asked for."""
        base = [gather(W, target.part) for target in item.targets]
        tuned = [self._tuned(target.label).to(W.device) for target in item.targets]
        for target, one, other in zip(item.targets, base, tuned, strict=True):
            fine = self._pairs.fine
            require_finite(one, target.tensor)
            require_finite(other, f"{fine.origin.text}: {fine.pairs[target.label].tensor}")
        if all(map(alike, base, tuned)):
            return (), Unchanged(item.module, not all(map(_equal, base, tuned)))
        D = torch.cat([difference(*pair) for pair in zip(base, tuned, strict=True)])
        size, kind, rms = _size(base), *_rounding(tuned)
        del base, tuned
        module = item.module
        found = truncated(
            D, self._wanted.most(module), seeded(f"{self._wanted.seed}/{module}/extract"),
            noise=rms[0], energy=self._wanted.energy,
        )  # fmt: skip
        if not found.rank:
            return (), Unchanged(module, by_rounding=True)
        A, B = (stored(side, self._wanted.dtype, module, _WIDER) for side in found.balanced())
        record = _record(item, D, found, (A, B), size, kind, rms[1])
        rows = torch.split(B, [target.shape[0] for target in item.targets])
        spreads = [spread(part, target.part, item.sides[0]) for target, part in zip(item.targets, rows, strict=True)]
        return (A, torch.stack(spreads).sum(0) if len(spreads) > 1 else spreads[0]), record

    def finish(
        self, item: Carrier, W: Tensor, early: None, tensors: Sequence[Tensor], rest: Extracted | Unchanged
    ) -> tuple[Extracted | Unchanged, Factors]:
        """The record, and A and B as bytes where there are any."""
        A, B = (*tensors, None, None)[:2]
        return rest, None if A is None or B is None else (matrix_bytes(A), matrix_bytes(B))

    def _tuned(self, label: str) -> Tensor:
        return load_projection(self._pairs.fine.files, self._pairs.fine.pairs[label])


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are the same numbers, but for the rounding of the narrower of both dtypes: of
    what is stored in float32, that of the numbers in it counts."""
    if _equal(one, other):
        return True
    kinds = [stored_dtype(side) for side in (one, other)] if one.is_floating_point() else [one.dtype, other.dtype]
    if kinds[0] == kinds[1] or not set(kinds) <= MANTISSA.keys():
        return False
    narrow = min(kinds, key=MANTISSA.__getitem__)
    return torch.equal(one.to(narrow), other.to(narrow))


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) if one.dtype == other.dtype else torch.equal(one.double(), other.double())


def difference(base: Tensor, tuned: Tensor) -> Tensor:
    """W1 - W0 (m, n) in float32, which errs by 6e-8 of each entry at most, or in float64 where one side is."""
    wide = torch.float64 if torch.float64 in (base.dtype, tuned.dtype) else torch.float32
    D = torch.empty(base.shape, dtype=wide, device=base.device)
    step = max(1, _BLOCK // base.shape[1])
    for top in range(0, len(D), step):
        rows = slice(top, top + step)
        torch.sub(tuned[rows].to(wide), base[rows].to(wide), out=D[rows])
    return D


def _size(parts: Sequence[Tensor]) -> float:
    return math.hypot(*(norm(part) for part in parts))


def _rounding(parts: Sequence[Tensor]) -> tuple[torch.dtype, tuple[float, float]]:
    """The narrowest dtype of the numbers, and the root mean squares of rounding them to float32 (float64 where that
    is it), below which nothing is a change, and to that dtype."""
    kind = max((stored_dtype(part) for part in parts), key=MANTISSA.__getitem__)
    entries = torch.cat([part.reshape(-1)[:: max(1, part.numel() // _SAMPLE)] for part in parts])
    exact = torch.float64 if kind == torch.float64 else torch.float32
    return kind, (rounding_rms(entries, exact), rounding_rms(entries, kind))


def _record(
    item: Carrier, D: Tensor, found: Truncation, factors: tuple[Tensor, Tensor], size: float, kind: torch.dtype,
    rms: float,
) -> Extracted:  # fmt: skip
    error = _left(D, *factors) / found.whole
    if not error < 1e6:  # also NaN
        raise NumericalError(f"{item.stored.name}: the error of its LoRA cannot be computed in float64.", _WIDER)
    edge = change_edge(rms, (D.shape[0], D.shape[1]))
    return Extracted(
        module=item.module,
        tensor=item.stored.name,
        shape=(D.shape[0], D.shape[1]),
        rank=found.rank,
        change=found.whole / size if size else 0.0,
        error=error,
        energy=max(0.0, 1 - error**2),
        truncated=found.lost,
        singular_values=tuple(found.S.tolist()),
        rounded_to=str(kind).removeprefix("torch."),
        rounding=min(1.0, D.numel() * (rms / found.whole) ** 2),
        above_rounding=int((found.S > edge).sum()),
        route=found.route,
    )


def _left(D: Tensor, A: Tensor, B: Tensor) -> float:
    """norm(D - B A), Frobenius, by blocks of rows in float64."""
    wide = A.double()
    step = max(1, _BLOCK // D.shape[1])
    rows = (slice(top, top + step) for top in range(0, len(D), step))
    return math.hypot(*(norm(D[part].double() - B[part].double() @ wide) for part in rows))
