"""One matrix (or a pair) in, one record of the analysis out: plain numbers that JSON can hold. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..linalg.finite import require_finite, require_measurable
from ..linalg.spectrum import Spectrum, spectrum
from ..metrics.change import After, Anatomy, Difference, amount, placement
from ..metrics.elements import QUANTILES, Grid, bfloat16_grid, element_statistics, predicted_survival
from ..metrics.heads import head_metrics, split
from ..metrics.spectral import cuts, rank_grid, spectral_metrics

Record = dict[str, Any]
DIGITS = 10  # significant digits that are kept


@dataclass(frozen=True)
class Elements:
    """What needs no spectrum: fields of the record, and how W lies among the bfloat16 numbers."""

    fields: Record
    grid: Grid


@dataclass(frozen=True)
class Spectra:
    """What needs linear algebra: all singular values, and the fields of each change."""

    found: Spectrum
    changes: list[Record]


def measure(
    W: Tensor, name: str, role: str, heads: int | None, rank: int, changes: Sequence[Callable[[Tensor], Difference]]
) -> Record:
    """Everything that is measured on W (m, n): spectrum, metrics, energies and gaps, elements, heads, changes.

    heads: number of attention heads in W, None to leave them out. rank: of the subspaces that are compared.
    changes: one function per fine-tune that gives the difference to it. Raises NumericalError for NaN or infinity, and
    for float64 values whose powers leave it.
    """
    elements = look_at_elements(W, name, role, heads)
    return put_together((W.shape[0], W.shape[1]), elements, decompose_spectra(W, name, role, heads, rank, changes))


def look_at_elements(W: Tensor, name: str, role: str, heads: int | None) -> Elements:
    """The first half of `measure`, with its errors."""
    _require_sound(W, name)
    fields = {
        "elements": {**element_statistics(W), "quantile_levels": list(QUANTILES)},
        "heads": head_metrics(W, role, heads) if heads else None,
    }
    return Elements(fields, bfloat16_grid(W))


def decompose_spectra(
    W: Tensor, name: str, role: str, heads: int | None, rank: int, changes: Sequence[Callable[[Tensor], Difference]]
) -> Spectra:
    """The half of `measure` that a device can do, with the same errors."""
    _require_sound(W, name)
    if not changes:
        return Spectra(spectrum(W), [])
    anatomy = Anatomy.of(W)  # which has the spectrum too
    return Spectra(anatomy.spectrum, _changes(anatomy, name, role, heads, min(rank, *W.shape), changes))


def _require_sound(W: Tensor, name: str) -> None:
    require_finite(W, name)
    require_measurable(W, name)


def put_together(shape: tuple[int, int], elements: Elements, spectra: Spectra) -> Record:
    """The record of both halves."""
    S, floor = spectra.found.S.numpy(), spectra.found.floor
    ranks = rank_grid(len(S))
    removed = (S[::-1] ** 2).cumsum() ** 0.5  # Frobenius norm of the bottom r
    survival = [predicted_survival(elements.grid, float(removed[r - 1]), r, shape) for r in ranks]
    record = {
        "spectrum": {"singular_values": S.tolist(), "floor": floor, "route": spectra.found.route},
        "metrics": spectral_metrics(S, floor, shape),
        "cuts": {"ranks": ranks, **cuts(S, ranks), "bottom_survival": survival},
        **elements.fields,
        "changes": spectra.changes,
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
    after = After.of(base, change, rank)
    relative = None
    if heads:
        norms = [float(block.double().norm()) for block in split(base.W, role, heads)]
        moved = [float(block.norm()) for block in split(change.delta, role, heads)]
        relative = [part / norm if norm else None for part, norm in zip(moved, norms, strict=True)]
    return {
        "metrics": amount(base.W, change),
        "placement": placement(base, change, after, rank) if bool(change.delta.any()) else None,
        "delta_singular_values": change.S.tolist(),
        "singular_values_after": after.S.tolist(),
        "elements_after": element_statistics(after.W),
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
