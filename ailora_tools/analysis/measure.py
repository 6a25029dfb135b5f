"""One matrix (or a pair) in, one record of the analysis out: plain numbers that JSON can hold. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..linalg.finite import require_finite, require_measurable
from ..linalg.spectrum import spectrum
from ..metrics.change import Anatomy, Difference, amount, placement
from ..metrics.elements import QUANTILES, bfloat16_grid, element_statistics, predicted_survival
from ..metrics.heads import head_metrics, split
from ..metrics.spectral import cuts, rank_grid, spectral_metrics

Record = dict[str, Any]
DIGITS = 10  # significant digits that are kept


def measure(
    W: Tensor, name: str, role: str, heads: int | None, rank: int, changes: Sequence[Callable[[Tensor], Difference]]
) -> Record:
    """Everything that is measured on W (m, n): spectrum, metrics, energies and gaps, elements, heads, changes.

    heads: number of attention heads in W, None to leave them out. rank: of the subspaces that are compared.
    changes: one function per fine-tune that gives the difference to it. Raises NumericalError for NaN or infinity, and
    for float64 values whose powers leave it.
    """
    require_finite(W, name)
    require_measurable(W, name)
    shape = (W.shape[0], W.shape[1])
    anatomy = Anatomy.of(W) if changes else None
    found = anatomy.spectrum if anatomy else spectrum(W)
    S = found.S.numpy()
    ranks = rank_grid(len(S))
    grid = bfloat16_grid(W)
    removed = (S[::-1] ** 2).cumsum() ** 0.5  # Frobenius norm of the bottom r
    record = {
        "spectrum": {"singular_values": S.tolist(), "floor": found.floor, "route": found.route},
        "metrics": spectral_metrics(S, found.floor, shape),
        "cuts": {
            "ranks": ranks,
            **cuts(S, ranks),
            "bottom_survival": [predicted_survival(grid, float(removed[r - 1]), r, shape) for r in ranks],
        },
        "elements": {**element_statistics(W), "quantile_levels": list(QUANTILES)},
        "heads": head_metrics(W, role, heads) if heads else None,
        "changes": _changes(anatomy, name, role, heads, min(rank, *shape), changes) if anatomy else [],
    }
    return {key: rounded(value) for key, value in record.items()}


def _changes(
    anatomy: Anatomy,
    name: str,
    role: str,
    heads: int | None,
    rank: int,
    changes: Sequence[Callable[[Tensor], Difference]],
) -> list[Record]:
    found = [change(anatomy.W) for change in changes]
    for change in found:
        require_measurable(change.delta, f"{name}, change")
    return [_change(anatomy, role, heads, rank, change) for change in found]


def _change(base: Anatomy, role: str, heads: int | None, rank: int, change: Difference) -> Record:
    tuned = base.W.double() + change.delta if change.low_rank else change.tuned
    after = spectrum(tuned).S
    relative = None
    if heads:
        norms = [float(block.double().norm()) for block in split(base.W, role, heads)]
        moved = [float(block.norm()) for block in split(change.delta, role, heads)]
        relative = [part / norm if norm else None for part, norm in zip(moved, norms, strict=True)]
    return {
        "metrics": amount(base.W, change),
        "placement": placement(base, change, rank) if bool(change.delta.any()) else None,
        "delta_singular_values": change.S.tolist(),
        "singular_values_after": after.tolist(),
        "elements_after": element_statistics(tuned),
        "head_relative_change": relative,
    }


def rounded(value: Any) -> Any:
    """The same document with every float at `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
