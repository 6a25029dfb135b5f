"""Matrices that are hard to decompose, of every scale, and what a surgery on them must state: against float64 numpy.

`cases` of all `MATRICES` are about six thousand: matrix, its dtype, rule, dtype of the adapter, scaling. `fault` says
what is wrong with the outcome of one, "" if nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ailora_tools.errors import NumericalError
from ailora_tools.surgery.decompose import Decomposition, Recipe, decompose

from .spectra import matrix

Array = NDArray[np.float64]
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
RULES = ("principal", "minor", "middle", "random-orthonormal", "sine", "qr", "nystrom", "minor-left", "kaiming")
RANK = 8
_LARGE = ("large", "1024", "1100", "one entry", "two scales")  # in names of matrices that take more than a blink


def _draw(rows: int, columns: int, scale: float = 1.0) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(rows * columns)
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale

    return draw


def _spectrum(side: int, values: Tensor) -> Callable[[], Tensor]:
    S = torch.zeros(side, dtype=torch.float64)
    S[: len(values)] = values
    return lambda: matrix((side, side), S)


def _hadamard(side: int) -> Tensor:
    found = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < side:
        found = torch.kron(torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64), found)
    return found


def _outlier_column() -> Tensor:
    W = _draw(256, 256)()
    W[:, 7] *= 1e4
    return W


def _one_entry() -> Tensor:
    W = torch.zeros(700, 700, dtype=torch.float64)
    W[3, 5] = 2.0
    return W


def _signs(side: int, size: float) -> Callable[[], Tensor]:
    return lambda: torch.sign(_draw(side, side)()) * size


def _steps(high: float, low: float, count: int) -> Tensor:
    return torch.linspace(high, low, count, dtype=torch.float64)


def _powers(low: float, count: int) -> Tensor:
    return torch.logspace(0, low, count, dtype=torch.float64)


_F16, _BF16 = torch.finfo(torch.float16).max, torch.finfo(torch.bfloat16).max
MATRICES: dict[str, Callable[[], Tensor]] = {
    **{f"noise {scale:g}": _draw(96, 96, scale)
       for scale in (1, 1e36, 1e30, 1e12, 1e6, 1e-7, 1e-10, 1e-20, 1e-30, 1e-40)},
    **{f"float64 {scale:g}": _draw(64, 64, scale) for scale in (1e200, 1e150, 1e60, 1e-60, 1e-200, 1e-310)},
    "zeros": lambda: torch.zeros(64, 48, dtype=torch.float64),
    "rank 1": _spectrum(64, _steps(3, 3, 1)),
    "rank 1, large": _spectrum(1024, _steps(3, 3, 1)),
    "rank 5, large": _spectrum(1024, _steps(5, 1, 5)),
    "rank 20, large": _spectrum(1100, _steps(5, 1, 20)),
    "rank 20 of equals, large": _spectrum(1100, _steps(1, 1, 20)),
    "equals": _spectrum(96, _steps(2, 2, 96)),
    "pairs, large": _spectrum(1024, _steps(4, 1, 512).repeat_interleave(2)),
    "outlier column": _outlier_column,
    "1 x 300": _draw(1, 300), "300 x 1": _draw(300, 1), "2 x 2": _draw(2, 2),
    "8 x 20000": _draw(8, 20000), "20000 x 8": _draw(20000, 8),
    "condition 1e12": _spectrum(256, _powers(-12, 256)),
    "condition 1e12, large": _spectrum(1200, _powers(-12, 1200)),
    "condition 1e30": _spectrum(64, _powers(-30, 64)),
    "hadamard 64": lambda: _hadamard(64), "hadamard 1024": lambda: _hadamard(1024),
    "identity 1024": lambda: torch.eye(1024, dtype=torch.float64),
    "integers": lambda: _draw(200, 200)().round(),
    "equal rows, large": lambda: _draw(32, 1024)().repeat(32, 1),
    "blocks 1100": lambda: torch.block_diag(*[_draw(11, 11)()] * 100),
    "eight far above, large": _spectrum(1024, torch.cat([_steps(1e6, 1e6, 8), _steps(1, 1, 1016)])),
    "float16's edge, signs": _signs(96, _F16),
    "float16's edge, constant": lambda: torch.full((96, 96), _F16, dtype=torch.float64),
    "float16's edge, noise": lambda: _draw(128, 128, 30000)().clamp(-_F16, _F16),
    "bfloat16's edge": _signs(96, _BF16), "float32's edge": _signs(96, 3.4e38),
    "noise 1024": _draw(1024, 1024), "one entry": _one_entry,
    "ones 1024": lambda: torch.ones(1024, 1024, dtype=torch.float64),
    "two scales": lambda: torch.block_diag(_draw(512, 512, 1e10)(), _draw(512, 512, 1e-10)()),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One decomposition of the list."""

    matrix: str
    dtype: str
    rule: str
    adapter: str
    scaling: float

    def recipe(self, rank: int) -> Recipe:
        return Recipe(self.rule, rank, self.scaling, DTYPES[self.adapter], DTYPES[self.dtype], "auto", 0, str(self))


@lru_cache(maxsize=4)
def _stored(name: str, dtype: str) -> Tensor:
    return MATRICES[name]().to(DTYPES[dtype])


@lru_cache(maxsize=4)
def _truth(name: str, dtype: str) -> tuple[Array, Array, float]:
    """W over its largest entry, its singular values, and that entry."""
    W = _stored(name, dtype).double().numpy()
    peak = float(np.abs(W).max()) or 1.0
    return W / peak, np.linalg.svd(W / peak, compute_uv=False), peak


def is_large(name: str) -> bool:
    """Whether a case of this matrix takes a tenth of a second and more."""
    return any(word in name for word in _LARGE)


def cases(name: str) -> Iterator[Case]:
    """Those of one matrix; dtypes that cannot hold it are left out."""
    for dtype in DTYPES:
        large = is_large(name)
        if (dtype != "F64" or not large) and ("float64 " not in name or dtype == "F64"):
            if not bool(_stored(name, dtype).isfinite().all()):
                continue
            for rule in RULES:
                for adapter in ("F32", "F16") if large else ("F32", "BF16", "F16"):
                    for scaling in (1.0,) if large else (1.0, 2.0):
                        yield Case(name, dtype, rule, adapter, scaling)


def fault(case: Case) -> str:
    """What is wrong: any other exception, an error without need, something not finite, a number that is not true."""
    W = _stored(case.matrix, case.dtype)
    try:
        found = decompose(W, case.recipe(min(RANK, *W.shape)))
    except NumericalError as error:
        return _needless(case, error.problem)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return next(filter(None, _faults(case, found)), "")


def _needless(case: Case, problem: str) -> str:
    """An error is right only where a bound on the factors, or on the residual, leaves the dtype."""
    _, S, peak = _truth(case.matrix, case.dtype)
    size = float(S[0]) * peak
    if "cannot be computed" in problem:  # the first step over norm(W) leaves float64 as well
        return "" if size < 1e-300 else problem
    if "lora_" in problem:
        largest = size if case.rule in ("qr", "nystrom") else math.sqrt(size / case.scaling)
        limit = torch.finfo(DTYPES[case.adapter]).max
    else:
        largest, limit = 2 * size, torch.finfo(DTYPES[case.dtype]).max
    return "" if largest > limit or case.rule == "nystrom" else f"refused without need: {problem}"


def _faults(case: Case, found: Decomposition) -> Iterator[str]:
    W, S, peak = _truth(case.matrix, case.dtype)
    numbers, A, B = found.numbers, found.A.double().numpy(), found.B.double().numpy()
    parts = [found.A, found.B, *([] if found.residual is None else [found.residual])]
    stated = [value for value in vars(numbers).values() if isinstance(value, float)]
    yield "" if all(bool(part.isfinite().all()) for part in parts) else "not finite"
    yield "" if all(map(math.isfinite, [*stated, *numbers.singular_values])) else "a number is not finite"
    if found.residual is None:
        return
    base = found.residual.double().numpy() / peak
    whole = float(np.linalg.norm(W))
    error = float(np.linalg.norm(W - base - (case.scaling * B / peak) @ A)) / whole if whole else 0.0
    yield _apart("error", numbers.reconstruction_error, error, 1e-3, 1e-14)
    zero = int((~(A.any(1) | B.any(0))).sum())
    yield "" if zero <= numbers.dead <= len(A) else f"dead is {numbers.dead}, {zero} are zero"
    side, rank = len(S), len(A)
    parts_of = {"principal": 0, "middle": (side - rank) // 2, "minor": side - rank}
    if case.rule in parts_of:
        wanted = S[parts_of[case.rule] :][:rank]
        got = np.array(numbers.singular_values) / peak
        yield "" if np.abs(got - wanted).max() <= 1e-7 * S[0] else "singular values are off"
        # Of large matrices `minor` estimates it in a small Krylov space.
        yield _apart(
            "sigma_max", (numbers.sigma_max or 0.0) / peak, float(S[0]), 1e-5 if is_large(case.matrix) else 1e-6, 0.0
        )
        floor = max(W.shape) * float(torch.finfo(torch.float32).eps) * float(S[0])
        below = int((wanted <= 0.99 * floor).sum())
        yield "" if numbers.dead >= below else f"dead is {numbers.dead}, {below} are below the floor"


def _apart(what: str, stated: float, true: float, relative: float, absolute: float) -> str:
    near = abs(stated - true) <= relative * max(stated, true) + absolute
    return "" if near else f"{what} is stated as {stated:.3e}, true is {true:.3e}"
