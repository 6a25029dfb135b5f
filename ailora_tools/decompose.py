"""One matrix through the surgery: W and a recipe in, A, B, the residual and the numbers that prove it out.

Convention: W is (out, in), A is `lora_A` (r, in), B is `lora_B` (out, r), and W_res = W - scaling * B @ A.
The factors are rounded to their stored dtype first and the residual is formed from the rounded factors, so
what rounding takes from the adapter stays in the base.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import NumericalError
from .linalg.components import Components
from .linalg.minor import minor
from .linalg.principal import principal
from .rounding import can_be_stochastic, round_stochastic

Rule = Callable[[Tensor, int, torch.Generator], Components]
RULES: dict[str, Rule] = {"principal": principal, "minor": minor}

SURVIVAL_WANTED = 0.9  # `--rounding auto` turns to stochastic rounding below this
_CHUNK_ELEMENTS = 1 << 21  # residual arithmetic goes by row blocks of this many elements


@dataclass(frozen=True)
class Recipe:
    """What to do with one matrix. `rule` is a key of RULES, or "kaiming" for a plain LoRA start."""

    rule: str
    rank: int
    scaling: float
    adapter_dtype: torch.dtype
    base_dtype: torch.dtype
    rounding: str  # auto, nearest or stochastic
    seed: int
    name: str  # the tensor's name: keys the random numbers and names the matrix in errors
    residual: bool = True  # whether W_res is wanted: without it nothing is rounded


@dataclass(frozen=True)
class Numbers:
    """What the tool states about one module (all measured on what is stored).

    reconstruction_error: norm(W - (W_res + s B A)) / norm(W), Frobenius.
    survival: 1 - norm(U_r^T E V_r) / norm(S_r), with E the rounding error of the residual and U_r, S_r, V_r
        the moved triplets: how much of the surgery is really in the stored base.
    survival_nearest: the same had the residual been rounded to nearest.
    gap: (s_k - s_k+1) / s_k at the cut. sigma_max: largest singular value of W.
    singular_values: those moved into the adapter, descending. dead: how many of them are numerically zero,
        at most max(out, in) * eps(float32) * sigma_max, so that A and B both start at zero there.
    residual_error: the decomposition's own a-posteriori error, relative to sigma_max.
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
    route: str
    rounding: str


@dataclass(frozen=True)
class Surgery:
    """A (r, in) and B (out, r) in the adapter dtype, W_res (out, in) in the base dtype or None, and the numbers."""

    A: Tensor
    B: Tensor
    residual: Tensor | None
    numbers: Numbers

    def cpu(self) -> Surgery:
        residual = None if self.residual is None else self.residual.cpu()
        return Surgery(self.A.cpu(), self.B.cpu(), residual, self.numbers)


def decompose(W: Tensor, recipe: Recipe) -> Surgery:
    """Split W (out, in), any float dtype and device, by the recipe.

    Raises NumericalError if W holds NaN or infinity.
    """
    if not torch.isfinite(W).all():
        bad = int((~torch.isfinite(W)).sum())
        raise NumericalError(
            f"{recipe.name}: {bad:,} of {W.numel():,} values are NaN or infinite.",
            "The checkpoint is damaged or its training diverged: it has no SVD. Leave the layer out with --layers.",
        )
    if recipe.rule == "kaiming":
        return _plain_lora(W, recipe)
    parts = RULES[recipe.rule](W, recipe.rank, _generator(recipe, "start"))
    A, B = _factors(parts, recipe)
    residual, error, survival, nearest, rounding = (
        _rounded_residual(W, A, B, parts, recipe) if recipe.residual else (None, 0.0, None, None, "none")
    )
    floor = max(W.shape) * torch.finfo(torch.float32).eps * parts.sigma_max
    numbers = Numbers(
        reconstruction_error=error,
        survival=survival,
        survival_nearest=nearest,
        gap=parts.gap,
        sigma_max=parts.sigma_max,
        singular_values=tuple(parts.S.tolist()),
        dead=int((floor >= parts.S).sum()),
        residual_error=parts.error,
        route=parts.route,
        rounding=rounding,
    )
    return Surgery(A, B, residual, numbers)


def _plain_lora(W: Tensor, recipe: Recipe) -> Surgery:
    """PEFT's default start: A from kaiming_uniform(a=sqrt(5)), that is U(-1/sqrt(in), 1/sqrt(in)), and B = 0."""
    bound = 1 / math.sqrt(W.shape[1])
    draw = torch.rand(recipe.rank, W.shape[1], generator=_generator(recipe, "start"))
    A = ((2 * draw - 1) * bound).to(W.device, recipe.adapter_dtype)
    B = torch.zeros(W.shape[0], recipe.rank, dtype=recipe.adapter_dtype, device=W.device)
    numbers = Numbers(0.0, None, None, None, None, (), 0, None, "random", "none")
    return Surgery(A, B, None, numbers)


def _factors(parts: Components, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Split sqrt(S / scaling) evenly (PiSSA, section 3; AILoRA uses the same split) and round to storage."""
    root = (parts.S / recipe.scaling).clamp_min(0).sqrt()  # (r,)
    A = (root[:, None] * parts.Vh).to(recipe.adapter_dtype)  # (r, in)
    B = (parts.U * root).to(recipe.adapter_dtype)  # (out, r)
    return A, B


def _rounded_residual(
    W: Tensor, A: Tensor, B: Tensor, parts: Components, recipe: Recipe
) -> tuple[Tensor, float, float, float, str]:
    """Residual, reconstruction error, survival, survival of rounding to nearest, and the rounding used."""
    stochastic_possible = can_be_stochastic(recipe.base_dtype)
    if recipe.rounding == "stochastic" and stochastic_possible:
        nearest = _residual(W, A, B, parts, recipe, None)[2]
    else:
        residual, error, nearest = _residual(W, A, B, parts, recipe, None)
        if recipe.rounding == "nearest" or nearest >= SURVIVAL_WANTED or not stochastic_possible:
            return residual, error, nearest, nearest, "nearest"
        del residual
    residual, error, survival = _residual(W, A, B, parts, recipe, _generator(recipe, "rounding"))
    return residual, error, survival, nearest, "stochastic"


def _residual(
    W: Tensor, A: Tensor, B: Tensor, parts: Components, recipe: Recipe, generator: torch.Generator | None
) -> tuple[Tensor, float, float]:
    """W - s B A rounded to the base dtype, with its reconstruction error and survival, by blocks of rows.

    W - (W_res + s B A) is minus the rounding error E of the residual, so E gives both numbers.
    """
    wide = torch.float32 if recipe.base_dtype.itemsize == 2 else torch.float64
    A_wide = A.to(wide) * recipe.scaling  # (r, in)
    V = parts.Vh.T.to(wide)  # (in, r)
    U = parts.U.to(wide)  # (out, r)
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
    moved = float(torch.linalg.vector_norm(parts.S))
    survival = 1.0 - float(torch.linalg.matrix_norm(leak)) / moved if moved > 0 else 1.0
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
