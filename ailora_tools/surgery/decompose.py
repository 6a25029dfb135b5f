"""One matrix through the surgery: W and a recipe in, A, B, the residual and the numbers that prove it out.

Convention: W is (out, in), A is `lora_A` (r, in), B is `lora_B` (out, r), and W_res = W - scaling * B @ A.
The factors are rounded to their stored dtype first and the residual is formed from the rounded factors, so
what rounding takes from the adapter stays in the base.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg.components import product
from ..linalg.finite import require_finite
from ..linalg.rounding import can_be_stochastic, round_stochastic
from ..linalg.starts import STARTS, Start
from ..methods import SURVIVAL_WANTED

_DIVERGED = "The checkpoint is damaged or its training diverged: it has no SVD. Leave the layer out with --layers."
_CHUNK_ELEMENTS = 1 << 21  # residual arithmetic goes by row blocks of this many elements


@dataclass(frozen=True)
class Recipe:
    """What to do with one matrix. `rule` is a key of `methods.RULES`; `frozen_b` if only A will be trained."""

    rule: str
    rank: int
    scaling: float
    adapter_dtype: torch.dtype
    base_dtype: torch.dtype
    rounding: str  # auto, nearest or stochastic
    seed: int
    name: str  # of the matrix (`matrix_name`): in messages, and as the key of its random numbers
    residual: bool = True  # whether W_res is wanted: without it nothing is rounded
    frozen_b: bool = False


def matrix_name(tensor: str, role: str, *, fused: bool) -> str:
    """What one matrix is called; random numbers hang on it, so that `init` and `residualize` must spell it alike."""
    return f"{tensor} ({role})" if fused else tensor


@dataclass(frozen=True)
class Numbers:
    """What the tool states about one module (all measured on what is stored).

    reconstruction_error: norm(W - (W_res + s B A)) / norm(W), Frobenius.
    survival: 1 - norm(U_r^T E V_r) / norm(S_r), with E the rounding error of the residual and U_r, S_r, V_r
        the moved triplets: how much of the surgery is really in the stored base.
    survival_nearest: the same had the residual been rounded to nearest.
    gap: (s_k - s_k+1) / s_k at the cut. sigma_max: largest singular value of W. None for rules without an SVD.
    singular_values: those moved into the adapter, descending. dead: how many of them are numerically zero,
        at most max(out, in) * eps(float32) * sigma_max (of what is moved, if that of W is not known).
    residual_error: the decomposition's own a-posteriori error, relative to sigma_max.
    overlap: <W, s B A> / <s B A, s B A>: 1 for singular components and for Q R, any number for other rules.
    motion: relative change of W expected from the first step of Adam, for a learning rate of 1 (see `_motion`).
    route: the algorithm that was used. rounding: the rule that was used for the residual.
    """

    reconstruction_error: float
    survival: float | None
    survival_nearest: float | None
    gap: float | None
    sigma_max: float | None
    singular_values: tuple[float, ...]
    dead: int
    residual_error: float | None
    overlap: float
    motion: float
    route: str
    rounding: str


@dataclass(frozen=True)
class Decomposition:
    """A (r, in) and B (out, r) in the adapter dtype, W_res (out, in) in the base dtype or None, and the numbers."""

    A: Tensor
    B: Tensor
    residual: Tensor | None
    numbers: Numbers

    def cpu(self) -> Decomposition:
        residual = None if self.residual is None else self.residual.cpu()
        return Decomposition(self.A.cpu(), self.B.cpu(), residual, self.numbers)


def decompose(W: Tensor, recipe: Recipe) -> Decomposition:
    """Split W (out, in), any float dtype and device, by the recipe.

    Raises NumericalError if W holds NaN or infinity.
    """
    require_finite(W, recipe.name, _DIVERGED)
    start = STARTS[recipe.rule](W, recipe.rank, _generator(recipe, "start"))
    A, B = _factors(start, recipe)
    residual, error, survival, nearest, rounding = (
        _rounded_residual(W, A, B, start, recipe)
        if recipe.residual and start.moved
        else (None, 0.0, None, None, "none")
    )
    values = start.S if start.moved else start.S[:0]
    largest = start.sigma_max if start.sigma_max is not None else float(values.max()) if len(values) else 0.0
    floor = max(W.shape) * torch.finfo(torch.float32).eps * largest
    numbers = Numbers(
        reconstruction_error=error,
        survival=survival,
        survival_nearest=nearest,
        gap=start.gap,
        sigma_max=start.sigma_max,
        singular_values=tuple(values.tolist()),
        dead=int((floor >= values).sum()),
        residual_error=start.error,
        overlap=1.0 if start.sigma_max is not None else _overlap(W, A, B, recipe.scaling),
        motion=_motion(W, A, B, recipe),
        route=start.route,
        rounding=rounding,
    )
    return Decomposition(A, B, residual, numbers)


def _factors(start: Start, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Round to storage. What is moved is divided by the scaling first, half on each side, as PEFT's PiSSA does."""
    root = math.sqrt(recipe.scaling) if start.moved else 1.0
    return (start.A / root).to(recipe.adapter_dtype), (start.B / root).to(recipe.adapter_dtype)


def _overlap(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> float:
    A_wide, B_wide = A.double() * scaling, B.double()
    size = ((B_wide.T @ B_wide) * (A_wide @ A_wide.T)).sum()
    return float((product(W.T, B_wide).T * A_wide).sum() / size) if size > 0 else 1.0


def _motion(W: Tensor, A: Tensor, B: Tensor, recipe: Recipe) -> float:
    """Expected norm(s (B dA + dB A)) / norm(W) where every entry of dA and dB is 1 in size, with independent signs:
    E norm(B dA)^2 = in * norm(B)^2 and E norm(dB A)^2 = out * norm(A)^2. The first step of Adam is that, times lr."""
    a, b, w = (float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in (A, B, W))
    step = recipe.scaling * math.hypot(math.sqrt(W.shape[1]) * b, 0.0 if recipe.frozen_b else math.sqrt(W.shape[0]) * a)
    return step / w if w else 0.0


def _rounded_residual(
    W: Tensor, A: Tensor, B: Tensor, start: Start, recipe: Recipe
) -> tuple[Tensor, float, float, float, str]:
    """Residual, reconstruction error, survival, survival of rounding to nearest, and the rounding used."""
    stochastic_possible = can_be_stochastic(recipe.base_dtype)
    if recipe.rounding == "stochastic" and stochastic_possible:
        nearest = _residual(W, A, B, start, recipe, None)[2]
    else:
        residual, error, nearest = _residual(W, A, B, start, recipe, None)
        if recipe.rounding == "nearest" or nearest >= SURVIVAL_WANTED or not stochastic_possible:
            return residual, error, nearest, nearest, "nearest"
        del residual
    residual, error, survival = _residual(W, A, B, start, recipe, _generator(recipe, "rounding"))
    return residual, error, survival, nearest, "stochastic"


def _residual(
    W: Tensor, A: Tensor, B: Tensor, start: Start, recipe: Recipe, generator: torch.Generator | None
) -> tuple[Tensor, float, float]:
    """W - s B A rounded to the base dtype, with its reconstruction error and survival, by blocks of rows.

    W - (W_res + s B A) is minus the rounding error E of the residual, so E gives both numbers.
    """
    wide = torch.float32 if recipe.base_dtype.itemsize == 2 else torch.float64
    A_wide = A.to(wide) * recipe.scaling  # (r, in)
    V = start.Vh.T.to(wide)  # (in, r)
    U = start.U.to(wide)  # (out, r)
    residual = torch.empty(W.shape, dtype=recipe.base_dtype, device=W.device)
    leak = torch.zeros(len(A), len(A), dtype=torch.float64, device=W.device)  # U_r^T E V_r
    error = total = torch.zeros((), dtype=torch.float64, device=W.device)
    for rows in _row_blocks(W):
        block = W[rows].to(wide)
        total = total + _sum_squares(block)
        exact = block - B[rows].to(wide) @ A_wide
        stored = _store(exact, recipe.base_dtype, generator)
        residual[rows] = stored
        E = stored.to(wide) - exact
        error = error + _sum_squares(E)
        leak += (U[rows].T @ (E @ V)).double()
    moved_norm = float(torch.linalg.vector_norm(start.S))
    survival = 1.0 - float(torch.linalg.matrix_norm(leak)) / moved_norm if moved_norm > 0 else 1.0
    relative = math.sqrt(float(error) / float(total)) if float(total) > 0 else 0.0
    return residual, relative, survival


def subtract(W: Tensor, A: Tensor, B: Tensor, recipe: Recipe, rounding: str) -> Tensor:
    """W - s B A in the recipe's base dtype, bit for bit as `decompose` stores it; `rounding` is the one it used."""
    generator = _generator(recipe, "rounding") if rounding == "stochastic" else None
    wide = torch.float32 if recipe.base_dtype.itemsize == 2 else torch.float64
    A_wide = A.to(wide) * recipe.scaling
    residual = torch.empty(W.shape, dtype=recipe.base_dtype, device=W.device)
    for rows in _row_blocks(W):
        exact = W[rows].to(wide) - B[rows].to(wide) @ A_wide
        residual[rows] = _store(exact, recipe.base_dtype, generator)
    return residual


def _row_blocks(W: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // W.shape[1])
    return (slice(top, top + step) for top in range(0, W.shape[0], step))


def _store(exact: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    return exact.to(dtype) if generator is None else _stochastic(exact, dtype, generator)


def _stochastic(exact: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return round_stochastic(exact.to(torch.float32), dtype, generator)


def _sum_squares(block: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(block, dtype=torch.float64)
    return norm.square()


def _generator(recipe: Recipe, purpose: str) -> torch.Generator:
    """Random numbers that depend on the seed, the tensor's name and the purpose, never on the order of work."""
    key = hashlib.sha256(f"{recipe.seed}/{recipe.name}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
