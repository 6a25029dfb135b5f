"""What an adapter starts from, rule by rule: factors B (m, r) and A (r, n) made of W (m, n), in float64.

The names are those of `methods.RULES`. Factors are before scaling; where `moved`, B A is a part of W that leaves the
base, and its singular triplets are given too, because the error of rounding is measured in their directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import exact
from .components import Components, product, require_rank
from .lowrank import factorise
from .minor import minor
from .principal import principal
from .scale import near_one, norm


@dataclass(frozen=True)
class Start:
    """B (m, r) and A (r, n); U (m, r), S (r,) descending and Vh (r, n) with U S Vh = B A where that is moved.

    gap, sigma_max, error: as in `Components`; None where the rule needs no singular values of W. overlap:
    <W, B A> / <B A, B A> where the rule knows it, 1 for singular components; None: to be computed.
    """

    A: Tensor
    B: Tensor
    U: Tensor
    S: Tensor
    Vh: Tensor
    route: str
    gap: float | None = None
    sigma_max: float | None = None
    error: float | None = None
    overlap: float | None = None
    moved: bool = True
    halves: tuple[int, int] = (1, 1)  # of the square root of W's scale: how many are in A and in B

    def times(self, k: int) -> Start:
        """The start of 4^k W from that of W."""
        (a, b), unit, whole = self.halves, 2.0**k, 4.0**k
        part = unit ** (a + b)
        return replace(
            self, A=self.A * unit**a, B=self.B * unit**b, S=self.S * part,
            sigma_max=None if self.sigma_max is None else self.sigma_max * whole,
            overlap=None if self.overlap is None else self.overlap * whole / part,
        )  # fmt: skip


Finder = Callable[[Tensor, int, torch.Generator], Components]
Starter = Callable[[Tensor, int, torch.Generator], Start]


def _spectral(find: Finder) -> Starter:
    """sqrt(S) on both sides (PiSSA, arXiv 2404.02948, section 3; AILoRA and MiLoRA use the same split)."""

    def start(W: Tensor, rank: int, generator: torch.Generator) -> Start:
        found = find(W, rank, generator)
        A, B = _balanced(found.U, found.S, found.Vh)
        return Start(
            A=A, B=B, U=found.U, S=found.S, Vh=found.Vh,
            gap=found.gap, sigma_max=found.sigma_max, error=found.error, overlap=1.0, route=found.route,
        )  # fmt: skip

    return start


def _right(find: Finder) -> Starter:
    """RLPO and RLMO (arXiv 2606.31813): A holds right singular vectors, B = 0; W is left alone. PiCa (arXiv 2505.20211)
    freezes the A of the principal ones; its code shares one B among the layers, which no adapter of PEFT does."""

    def start(W: Tensor, rank: int, generator: torch.Generator) -> Start:
        found = find(W, rank, generator)
        return replace(_untouched(found), A=found.Vh, B=torch.zeros_like(found.U))

    return start


def _untouched(found: Components) -> Start:
    """What is known of a start from these triplets that leaves W alone; both factors are zero."""
    return Start(
        A=torch.zeros_like(found.Vh), B=torch.zeros_like(found.U), U=found.U, S=found.S, Vh=found.Vh,
        gap=found.gap, sigma_max=found.sigma_max, error=found.error, route=found.route, moved=False, halves=(0, 0),
    )  # fmt: skip


def _balanced(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, n) and B (m, r) with B A = U S Vh, the square root of S on each side."""
    root = S.clamp_min(0).sqrt()  # (r,)
    return root[:, None] * Vh, U * root


def middle(W: Tensor, rank: int, generator: torch.Generator) -> Components:
    """The `rank` triplets around the middle of the spectrum: (min(m, n) - rank) // 2 lie above them."""
    require_rank(W, rank)
    above = (min(W.shape) - rank) // 2
    part = slice(above, above + rank)
    return exact.gram_eigh(W, part) or exact.svd(W, part)


def random_orthonormal(W: Tensor, rank: int, generator: torch.Generator) -> Start:
    """A control: uniformly random orthonormal U and V, with norm(W) / sqrt(min(m, n)), the root mean square singular
    value of W, on each. As large as an average part of W, and knows nothing of its directions: there is no gap
    and no error to state."""
    require_rank(W, rank)
    draws = (torch.randn(side, rank, generator=generator, dtype=torch.float64) for side in W.shape)
    U, V = (torch.linalg.qr(draw)[0].to(W.device) for draw in draws)
    size = norm(W) / math.sqrt(min(W.shape))
    S = torch.full((rank,), size, dtype=torch.float64, device=W.device)
    A, B = _balanced(U, S, V.T)
    return Start(A=A, B=B, U=U, S=S, Vh=V.T, route="random")


def sine(W: Tensor, rank: int, generator: torch.Generator) -> Start:
    """LoRAM (arXiv 2507.06558, algorithm 1): the first vectors of the discrete sine transform on both sides, so large
    that B A has log(r) / log(min(m, n)) of the mean square of W, which stands for what PiSSA's part has of it. Knows
    the size of W and nothing of its directions: there is no gap and no error to state. Of rank 1 both are zero."""
    require_rank(W, rank)
    U, V = (_sines(side, rank).to(W.device) for side in W.shape)
    gain = math.log(rank) / math.log(min(W.shape)) if rank > 1 else 0.0
    S = torch.full((rank,), norm(W) * math.sqrt(gain / rank), dtype=torch.float64, device=W.device)
    A, B = _balanced(U, S, V.T)
    return Start(A=A, B=B, U=U, S=S, Vh=V.T, route="sine")


def _sines(size: int, count: int) -> Tensor:
    """The first columns of the DST-I, orthonormal: (size, count), sqrt(2 / (size + 1)) sin(pi i j / (size + 1))."""
    turns = torch.outer(torch.arange(1, size + 1), torch.arange(1, count + 1)) % (2 * size + 2)  # exact, whatever i j
    return torch.sin(turns.double() * (math.pi / (size + 1))) * math.sqrt(2 / (size + 1))


def leading_qr(W: Tensor, rank: int, generator: torch.Generator) -> Start:
    """OLoRA (arXiv 2406.01775): B = Q[:, :r] and A = R[:r] of W = Q R, that is the span of the first r columns.

    Only those columns need a factorisation, as R[:r] = Q_r^T W: O(m n r). PEFT's `olora` takes Q_r and R_r as they are
    and subtracts scaling * Q_r R_r; here both are divided by the root of the scaling, so that the same Q_r R_r is moved
    whatever alpha is. With scaling 1 the two agree.
    """
    require_rank(W, rank)
    Q, _ = torch.linalg.qr(W[:, :rank].double())
    return replace(_factored(Q, product(W.T, Q).T, "qr"), halves=(2, 0))


def nystrom(W: Tensor, rank: int, generator: torch.Generator) -> Start:
    """NLoRA (arXiv 2502.14482): W[:, :r] pinv(W[:r, :r]) W[:r], the Nystroem approximation from the leading block.

    The square root of the pseudo-inverse goes to each side. The paper trains the block as a third matrix, and its code
    neither inverts the block nor subtracts anything from W, so that its step 0 changes the model; here the part is
    taken out of the base as in all of these. A nearly singular block makes this part, and so the rounding error of a
    16-bit residual, larger than W itself: see `reconstruction_error`.
    """
    require_rank(W, rank)
    P, S, Qh = torch.linalg.svd(W[:rank, :rank].double())
    floor = rank * torch.finfo(torch.float64).eps * S[0]
    root = torch.where(floor < S, S, torch.inf).rsqrt()  # 0 where the block has no such direction
    return _factored(W[:, :rank].double() @ (Qh.T * root), root[:, None] * (P.T @ W[:rank].double()), "nystrom")


def minor_left(W: Tensor, rank: int, generator: torch.Generator) -> Start:
    """MiCA (arXiv 2604.01694): B holds the minor left singular vectors and stays frozen, A = 0; W is left alone."""
    found = minor(W, rank, generator)
    return replace(_untouched(found), B=found.U)


def minor_orthonormal(W: Tensor, rank: int, generator: torch.Generator) -> Start:
    """OLoRA-tail (arXiv 2606.02437, section 4.1.2): B = U and A = Vh of the minor triplets, without their singular
    values; U Vh leaves the base. As in `leading_qr` the same is moved whatever alpha is; with scaling 1 that is the
    paper's."""
    found = minor(W, rank, generator)
    return Start(
        A=found.Vh, B=found.U, U=found.U, S=torch.ones_like(found.S), Vh=found.Vh, gap=found.gap,
        sigma_max=found.sigma_max, error=found.error, overlap=float(found.S.mean()), route=found.route, halves=(0, 0),
    )  # fmt: skip


def kaiming(W: Tensor, rank: int, generator: torch.Generator) -> Start:
    """PEFT's plain LoRA: A from kaiming_uniform(a=sqrt(5)), that is U(-1/sqrt(n), 1/sqrt(n)), and B = 0."""
    bound = 1 / math.sqrt(W.shape[1])
    draw = torch.rand(rank, W.shape[1], generator=generator)
    A = ((2 * draw - 1) * bound).double().to(W.device)
    B = torch.zeros(W.shape[0], rank, dtype=torch.float64, device=W.device)
    return Start(A=A, B=B, U=B, S=torch.zeros(0, dtype=torch.float64), Vh=A, route="random", moved=False, halves=(0, 0))


def _factored(B: Tensor, A: Tensor, route: str) -> Start:
    found = factorise(B, A)
    return Start(A=A, B=B, U=found.U, S=found.S, Vh=found.Vh, route=route)


def find_start(rule: str, W: Tensor, rank: int, generator: torch.Generator) -> Start:
    """The start by a key of `STARTS` from W (m, n), any float dtype, finite, of any scale: where squares could leave
    float32 or float64, or digits are few as in denormal numbers, W is brought near 1 first."""
    near, k = near_one(W)
    found = STARTS[rule](near, rank, generator)
    return found.times(k) if k else found


STARTS: dict[str, Starter] = {
    "principal": _spectral(principal),
    "minor": _spectral(minor),
    "middle": _spectral(middle),
    "random-orthonormal": random_orthonormal,
    "sine": sine,
    "qr": leading_qr,
    "nystrom": nystrom,
    "minor-orthonormal": minor_orthonormal,
    "minor-left": minor_left,
    "principal-right": _right(principal),
    "minor-right": _right(minor),
    "principal-right-frozen": _right(principal),
    "kaiming": kaiming,
    "pooled": kaiming,  # of as many inputs as there are groups
}
