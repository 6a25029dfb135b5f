"""One number for each module, by which modules are chosen, from the records of its matrices in an analysis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_STEADY = 1e-8  # KappaTune's, against division by zero
Record = Mapping[str, Any]


def scores(matrices: Iterable[Record], basis: str) -> dict[str, float]:
    """Module -> its condition number s_1 / (s_k + 1e-8), as PEFT's KappaTune has it and for the worst of its matrices,
    or with the basis "change" how far the fine-tunes moved it, norm(W1 - W0) / norm(W0), in the mean over them."""
    modules: dict[str, list[Record]] = {}
    for row in matrices:
        modules.setdefault(row["module"], []).append(row)
    score: Callable[[Sequence[Record]], float] = _change if basis == "change" else _condition
    return {module: score(rows) for module, rows in modules.items()}


def _condition(rows: Sequence[Record]) -> float:
    spectra = (row["spectrum"]["singular_values"] for row in rows)
    return float(max(S[0] / (S[-1] + _STEADY) for S in spectra))


def _change(rows: Sequence[Record]) -> float:
    """Of all matrices of a module together: norm of their changes over their norm."""
    size = sum((row["metrics"]["frobenius_norm"] or 0.0) ** 2 for row in rows)
    tunes = range(len(rows[0]["changes"]))
    moved = [sum((row["changes"][at]["metrics"]["delta_norm"] or 0.0) ** 2 for row in rows) ** 0.5 for at in tunes]
    return float(sum(moved) / len(moved) / size**0.5) if size else 0.0
