"""One matrix through the surgery: W and a recipe in, A, B, the residual and the numbers that prove it out.

Convention: W is (out, in), A is `lora_A` (r, in), B is `lora_B` (out, r), and W_res = W - scaling * B @ A.
The factors are rounded to their stored dtype first and the residual is formed from the rounded factors, so
what rounding takes from the adapter stays in the base.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters.pooled import unpooled
from ..errors import NumericalError, listed
from ..linalg import portions
from ..linalg.components import product
from ..linalg.finite import require_finite, stored
from ..linalg.recombine import recombination_error
from ..linalg.rounding import Dither, can_be_stochastic
from ..linalg.scale import norm
from ..linalg.starts import Start, find_start
from ..methods import RULES, SURVIVAL_WANTED
from .grid import settle

_DIVERGED = "The checkpoint is damaged or its training diverged: it has no SVD. Leave the layer out with --layers."
_LEAVE_OUT = "Leave the layer out with --layers."
_CHUNK_ELEMENTS = 1 << 19  # residual arithmetic goes by row blocks of this many elements


@dataclass(frozen=True)
class Recipe:
    """What to do with one matrix. `rule` is a key of `methods.RULES`; `frozen` is the factor that is not trained."""

    rule: str
    rank: int
    scaling: float
    adapter_dtype: torch.dtype
    base_dtype: torch.dtype
    rounding: str  # auto, nearest or stochastic
    seed: int
    name: str  # of the matrix (`matrix_name`): in messages, and as the key of its random numbers
    residual: bool = True  # whether W_res is wanted: without it nothing is rounded
    frozen: str = ""  # A or B
    grid: str | None = None  # a key of `linalg.grid.GRIDS` if the residual is to lie on it, after `rounds` at most
    rounds: int = 1
    group: int | None = None  # of inputs, over whose sums A is taken


def matrix_name(tensor: str, role: str, *, fused: bool) -> str:
    """What one matrix is called; random numbers hang on it, so that `init` and `residualize` must spell it alike."""
    return f"{tensor} ({role})" if fused else tensor


@dataclass(frozen=True)
class Numbers:
    """What the tool states about one module (all measured on what is stored).

    reconstruction_error: norm(W - (W_res + s B A)) / norm(W), Frobenius, in float64: with the rounding of the
        subtraction as well as that of its result.
    survival: 1 - norm(U_r^T E V_r) / norm(S_r), with E the rounding error of the residual and U_r, S_r, V_r
        the moved triplets: how much of the surgery is really in the stored base.
    survival_nearest: the same had the residual been rounded to nearest.
    gap: (s_k - s_k+1) / s_k at the cut. sigma_max: largest singular value of W. None for rules without an SVD.
    singular_values: those moved into the adapter, descending. dead: how many of them are numerically zero,
        at most max(out, in) * eps(float32) * sigma_max (of what is moved, if that of W is not known), or have nothing
        but zeros in A and B as stored.
    residual_error: the decomposition's own a-posteriori error, relative to sigma_max.
    overlap: <W, s B A> / <s B A, s B A>: 1 for singular components and for Q R, any number for other rules.
    motion: relative change of W expected from the first step of Adam, for a learning rate of 1 (see `_motion`).
    route: the algorithm that was used. rounding: the rule that was used for the residual.
    grid_error, plain_error, rounds: as in `grid.Settled`; None where the residual lies on no grid. Then gap, sigma_max
        and residual_error are of W, the singular values of what is moved in the last round.
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
    grid_error: float | None = None
    plain_error: float | None = None
    rounds: int | None = None


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

    Raises NumericalError if W holds NaN or infinity, or if a result does not fit the dtype it is stored in.
    """
    require_finite(W, recipe.name, _DIVERGED)
    if recipe.grid is not None and recipe.residual and RULES[recipe.rule].moved:
        return _on_grid(W, recipe, recipe.grid)
    if recipe.group is not None:
        return _over_groups(W, recipe, recipe.group)
    start, A, B = _split(W, recipe)
    residual, survival, nearest, rounding = (
        _rounded_residual(W, A, B, start, recipe) if recipe.residual and start.moved else (None, None, None, "none")
    )
    values = start.S if start.moved else start.S[:0]
    numbers = Numbers(
        reconstruction_error=0.0 if residual is None else recombination_error(residual, A, B, recipe.scaling, W),
        survival=survival,
        survival_nearest=nearest,
        gap=start.gap,
        sigma_max=start.sigma_max,
        singular_values=tuple(values.tolist()),
        dead=_dead(start, A, B) if start.moved else 0,
        residual_error=start.error,
        overlap=_overlap(W, A, B, recipe.scaling) if start.overlap is None else start.overlap,
        motion=_motion(W, A, B, recipe),
        route=start.route,
        rounding=rounding,
    )
    _require_numbers(numbers, recipe)
    return Decomposition(A, B, residual, numbers)


def _split(W: Tensor, recipe: Recipe) -> tuple[Start, Tensor, Tensor]:
    start = find_start(recipe.rule, W, recipe.rank, seeded(_stream(recipe, "start")))
    return (start, *_factors(start, recipe))


def _on_grid(W: Tensor, recipe: Recipe, kind: str) -> Decomposition:
    """The same where the residual lies on a grid of few bits: only principal components are found anew in rounds."""
    first = list[Start]()

    def split(rest: Tensor) -> tuple[Start, Tensor, Tensor]:
        start, A, B = _split(rest, recipe)
        first.extend([start] if not first else [])
        return start, A, B

    found = settle(
        W, kind, recipe.rounds if recipe.rule == "principal" else 1, recipe.scaling, split,
        lambda A, B: subtract(W, A, B, recipe, "nearest"),
    )  # fmt: skip
    A, B = found.A, found.B
    numbers = Numbers(
        reconstruction_error=found.grid_error, survival=found.survival, survival_nearest=None,
        gap=first[0].gap, sigma_max=first[0].sigma_max, singular_values=tuple(found.start.S.tolist()),
        dead=_dead(found.start, A, B), residual_error=first[0].error, overlap=_overlap(W, A, B, recipe.scaling),
        motion=_motion(W, A, B, recipe), route=first[0].route, rounding=kind, grid_error=found.grid_error,
        plain_error=found.plain_error, rounds=found.rounds,
    )  # fmt: skip
    _require_numbers(numbers, recipe)
    return Decomposition(A, B, found.residual, numbers)


def _over_groups(W: Tensor, recipe: Recipe, size: int) -> Decomposition:
    """A (r, in / size). W counts for nothing but its shape and, in `motion`, its norm."""
    found = decompose(W[:, : W.shape[1] // size], replace(recipe, group=None))
    motion = _motion(W, unpooled(found.A, size), found.B, recipe)
    return replace(found, numbers=replace(found.numbers, motion=motion))


def _factors(start: Start, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Round to storage. What is moved is divided by the scaling first, half on each side, as PEFT's PiSSA does."""
    root = math.sqrt(recipe.scaling) if start.moved else 1.0
    hint = _wider("--adapter-dtype", recipe.adapter_dtype)
    A = stored(start.A / root, recipe.adapter_dtype, f"{recipe.name}, lora_A", hint)
    return A, stored(start.B / root, recipe.adapter_dtype, f"{recipe.name}, lora_B", hint)


def _wider(option: str, dtype: torch.dtype) -> str:
    """The way out of an overflow in `dtype`."""
    return f"Store it in a wider type: {option} float32." if dtype.itemsize < 4 else _LEAVE_OUT


def _dead(start: Start, A: Tensor, B: Tensor) -> int:
    """Components without a gradient. Small values come last, so that one count holds the other."""
    largest = start.sigma_max if start.sigma_max is not None else float(start.S.max())
    floor = max(len(B), A.shape[1]) * torch.finfo(torch.float32).eps * largest
    empty = ~(A.any(dim=1) | B.any(dim=0))
    return max(int((floor >= start.S).sum()), int(empty.sum()))


def _require_numbers(numbers: Numbers, recipe: Recipe) -> None:
    """What is stated about finite factors can still leave float64."""
    found = {key: value for key, value in vars(numbers).items() if isinstance(value, float)}
    wrong = [key for key, value in found.items() if not math.isfinite(value)]
    if wrong or not all(map(math.isfinite, numbers.singular_values)):
        raise NumericalError(
            f"{recipe.name}: {listed(wrong or ['a singular value'])} cannot be computed in float64.",
            _LEAVE_OUT,
        )


def _overlap(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> float:
    A_wide, B_wide = A.double() * scaling, B.double()
    size = ((B_wide.T @ B_wide) * (A_wide @ A_wide.T)).sum()
    return float((product(W.T, B_wide).T * A_wide).sum() / size) if size > 0 else 1.0


def _motion(W: Tensor, A: Tensor, B: Tensor, recipe: Recipe) -> float:
    """Expected norm(s (B dA + dB A)) / norm(W) where every entry of dA and dB is 1 in size, with independent signs:
    E norm(B dA)^2 = in * norm(B)^2 and E norm(dB A)^2 = out * norm(A)^2. The first step of Adam is that, times lr."""
    by_a = 0.0 if recipe.frozen == "A" else math.sqrt(W.shape[1]) * norm(B)
    by_b = 0.0 if recipe.frozen == "B" else math.sqrt(W.shape[0]) * norm(A)
    w = norm(W)
    return recipe.scaling * math.hypot(by_a, by_b) / w if w else 0.0


def _rounded_residual(
    W: Tensor, A: Tensor, B: Tensor, start: Start, recipe: Recipe
) -> tuple[Tensor, float, float, str]:
    """Residual, survival, survival of rounding to nearest, and the rounding used."""
    stochastic_possible = can_be_stochastic(recipe.base_dtype)
    if recipe.rounding == "stochastic" and stochastic_possible:
        nearest = _residual(W, A, B, start, recipe, None)[1]
    else:
        residual, nearest = _residual(W, A, B, start, recipe, None)
        if recipe.rounding == "nearest" or nearest >= SURVIVAL_WANTED or not stochastic_possible:
            return residual, nearest, nearest, "nearest"
        del residual
    residual, survival = _residual(W, A, B, start, recipe, _dither(recipe))
    return residual, survival, nearest, "stochastic"


def _residual(
    W: Tensor, A: Tensor, B: Tensor, start: Start, recipe: Recipe, dither: Dither | None
) -> tuple[Tensor, float]:
    """W - s B A rounded to the base dtype, and its survival, by blocks of rows."""
    wide = torch.float32 if recipe.base_dtype.itemsize == 2 else torch.float64
    V = start.Vh.T.to(wide)  # (in, r)
    U = start.U.to(wide)  # (out, r)
    hint = _wider("--base-dtype", recipe.base_dtype)
    residual = torch.empty(W.shape, dtype=recipe.base_dtype, device=W.device)
    leak = torch.zeros(len(A), len(A), dtype=torch.float64, device=W.device)  # U_r^T E V_r
    for rows, exact in _differences(W, A, B, recipe.scaling):
        block = dither and dither.at(rows.start * W.shape[1])
        residual[rows] = stored(exact, recipe.base_dtype, f"{recipe.name}, residual", hint, block)
        E = (residual[rows] - exact).to(wide)
        leak += (U[rows].T @ (E @ V)).double()
    moved_norm = norm(start.S)
    return residual, 1.0 - norm(leak) / moved_norm if moved_norm > 0 else 1.0


def subtract(W: Tensor, A: Tensor, B: Tensor, recipe: Recipe, rounding: str) -> Tensor:
    """W - s B A in the recipe's base dtype, bit for bit as `decompose` stores it; `rounding` is the one it used.
    NumericalError where that dtype cannot hold it."""
    dither = _dither(recipe) if rounding == "stochastic" else None
    residual = torch.empty(W.shape, dtype=recipe.base_dtype, device=W.device)
    for rows, exact in _differences(W, A, B, recipe.scaling):
        block = dither and dither.at(rows.start * W.shape[1])
        residual[rows] = stored(exact, recipe.base_dtype, recipe.name, "Load the model in float32.", block)
    return residual


def _differences(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Iterator[tuple[slice, Tensor]]:
    """W - s B A in float64 by blocks of rows. In float32 the order in which a device sums the product would show in
    the bits of the residual; in float64 it is below what a 16-bit residual can tell, but for one entry in 10^13."""
    A64, B64 = A.double() * scaling, B.double()
    for rows in _row_blocks(W):
        yield rows, torch.addmm(W[rows].double(), B64[rows], A64, alpha=-1)


def _row_blocks(W: Tensor) -> Iterator[slice]:
    step = max(1, portions.elements(W.device, _CHUNK_ELEMENTS) // W.shape[1])
    return (slice(top, top + step) for top in range(0, W.shape[0], step))


def _dither(recipe: Recipe) -> Dither:
    return Dither(_key(_stream(recipe, "rounding")))


def _stream(recipe: Recipe, purpose: str) -> str:
    """Random numbers that depend on the seed, the tensor's name and the purpose, never on the order of work."""
    return f"{recipe.seed}/{recipe.name}/{purpose}"


def seeded(text: str) -> torch.Generator:
    """Random numbers that depend on nothing but `text`."""
    return torch.Generator().manual_seed(_key(text) >> 1)


def _key(text: str) -> int:
    """64 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
