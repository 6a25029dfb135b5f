"""All singular values of a matrix, with all its singular vectors or with those at both ends: from one Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import exact
from .components import Components, believable, gram, product, transposed
from .eigen import eigh, turn
from .minor import minor
from .principal import principal
from .scale import near_one
from .spectrum import Spectrum, resolved, unresolved

_VECTORS_SIDE = 1024  # up to here all vectors cost no more than those at both ends by iteration


@dataclass(frozen=True)
class Whole:
    """U (m, k) and V (n, k) with orthonormal columns, descending, k = min(m, n), float32 on W's device; the values."""

    U: Tensor
    V: Tensor
    spectrum: Spectrum


_LARGE_PART = 1e-2  # of s_1: above, W v / s in float32 loses two digits at most


def whole(W: Tensor) -> Whole:
    """All triplets of W (m, n), any float dtype and device, finite, by `eigh` of the float64 Gram matrix.

    Vectors whose values lie within 1e-8 of s_1 squared of each other are mixed among themselves: spans of bands stay
    right. The other side is W v / s in float32, where s is large, and a QR of W v in float64 where it is not.
    """
    if W.shape[0] < W.shape[1]:
        found = whole(W.T)
        return Whole(found.V, found.U, found.spectrum)
    with turn(W.device):
        squares, vectors = eigh(gram(W.T))
    V, S = vectors.flip(1), squares.flip(0).clamp_min(0).sqrt()  # (n, n), descending
    large = int((S > _LARGE_PART * S[0]).sum())
    narrow = V.float()
    U = _left(near_one(W)[0].float(), narrow[:, :large])
    if large < len(S):
        U = torch.cat([U, _rest(U, product(W, V[:, large:]), deficient=bool(S[-1] <= exact.RESOLVED * S[0]))], 1)
    return Whole(U, narrow, resolved(W.T, squares, lambda count: _last(W, count, (squares, vectors))))


@dataclass(frozen=True)
class Ends:
    """The values of W (m, n), and the triplets of its largest ones and of its smallest ones as in `Components`."""

    spectrum: Spectrum
    top: Components
    bottom: Components


def ends(W: Tensor, top: int, bottom: int) -> Ends:
    """All singular values of W (m, n), any float dtype and device, finite, near 1, not all zero, and the `top` first
    triplets, good to float32, and `bottom` or more of the last ones.

    What `spectrum`, `principal` and `minor` find, for less: one Gram matrix and the smallest triplets serve all.
    """
    if W.shape[0] < W.shape[1]:
        found = ends(W.T, top, bottom)
        return Ends(found.spectrum, transposed(found.top), transposed(found.bottom))
    if W.shape[1] <= _VECTORS_SIDE:
        pairs = eigh(gram(W.T))
        part = slice(0, top)
        first = exact.of_gram(W, part, *pairs) or exact.svd(W, part)
        values = resolved(W.T, pairs[0], lambda count: _last(W, count, pairs))
        return Ends(values, first, _last(W, bottom, pairs))
    generator = torch.Generator().manual_seed(0)
    with turn(W.device):
        G = gram(W.T)
        squares = torch.linalg.eigvalsh(G)
    last = minor(W, max(bottom, unresolved(squares)), generator, G)
    values = resolved(W.T, squares, lambda _: last)
    if not believable(last, *exact.cut(values.S, slice(len(squares) - bottom, len(squares)))):
        last = minor(W, bottom, generator)  # found for another cut, they need not be good enough at this one
    return Ends(values, principal(W.float(), top, generator), last)


def _last(W: Tensor, count: int, pairs: tuple[Tensor, Tensor]) -> Components:
    """The smallest `count` triplets of W (m, n), m >= n, from the eigenpairs of W^T W where these resolve them."""
    part = slice(W.shape[1] - count, W.shape[1])
    return exact.of_gram(W, part, *pairs) or minor(W, count, torch.Generator().manual_seed(0))


def _left(W: Tensor, V: Tensor) -> Tensor:
    """W V with columns of norm 1."""
    Y = W @ V
    return Y.div_(Y.norm(dim=0))


def _rest(U: Tensor, Y: Tensor, *, deficient: bool) -> Tensor:
    """An orthonormal basis of Y (m, k) = W v, float64, column after column. Where W is `deficient`, Y is its rounding,
    and has to be made orthogonal to U: twice is enough."""
    Q = _oriented(Y / Y.norm(dim=0).clamp_min(exact.TINY))
    for _ in range(2 if deficient else 0):
        Q = _oriented(Q - U.double() @ (U.double().T @ Q))
    basis: Tensor = Q.float()
    return basis


def _oriented(Y: Tensor) -> Tensor:
    """The Q of a QR of Y (m, k), each column on the side of that of Y."""
    Q, R = torch.linalg.qr(Y)
    diagonal = R.diagonal()
    oriented: Tensor = Q * diagonal.sign().where(diagonal != 0, 1.0)
    return oriented
