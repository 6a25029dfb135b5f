"""What a merged tensor is that is not base plus adapter: the mistakes that merging is known for, tried one by one.

A mistake is named where the tensor is what it makes, up to rounding; nothing is guessed from one number alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.folder import Adapter, Factors
from ..adapters.places import Place
from ..linalg.agreement import Agreement, Change, blocks, roundoff
from ..linalg.scale import norm
from .change import sides

_NEAR = 0.02  # of what was changed: how near a mistake has to come
_WHOLE = 0.05  # of a share, how near to 0, 1 or 2 it has to be
_MOST = 12  # other modules that are tried
_STRANGE = 0.5  # cosine of two matrices, below which they are of different models
_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Suspect:
    """Where the tensor belongs, and what else the adapter has that would fit there: module -> factors; names: module ->
    tensor of the base."""

    place: Place
    adapter: Adapter
    others: Mapping[str, Factors]
    names: Mapping[str, str]


def cause(W: Tensor, M: Tensor, change: Change, found: Agreement, suspect: Suspect) -> str:
    """What is wrong with M (m, n), as a clause; W (m, n) and M as stored."""
    if found.same:
        return "is the base's: the adapter is not in it"
    moved = M.double() - W.double()
    case = _Case(moved, found)
    for told in _told(case, W, M, change, found, suspect):
        if told:
            return told
    return _by_size(W, M, found)


class _Case:
    """M - W (m, n), float64, and how near another matrix has to come to be what it is."""

    def __init__(self, moved: Tensor, found: Agreement) -> None:
        self.moved = moved
        self._limit = 2 * found.rounding

    def is_like(self, other: Tensor, near: float = _NEAR) -> bool:
        return norm(self.moved - other) <= self._limit + near * norm(other)

    def means_something(self, other: Tensor) -> bool:
        """Whether `other` can be told from rounding at all."""
        return norm(other) > 2 * self._limit


def _told(case: _Case, W: Tensor, M: Tensor, change: Change, found: Agreement, suspect: Suspect) -> Iterator[str]:
    if change.whole is not None:
        return
    wanted = torch.cat([block.wanted - block.W for _, block in blocks(W, change, M.dtype)])
    yield _rounded(W, M, found)
    if not case.means_something(wanted):
        return
    if case.is_like(torch.zeros_like(wanted)):
        yield "differs from the base by rounding only: the adapter is not in it"
    if change.left is not None and change.right is not None:
        plain = change.left @ change.right
        if change.magnitude is not None and case.is_like(plain):
            yield "has s B A of the adapter, and not its magnitudes (DoRA)"
        yield _scaled(case, plain if change.magnitude is None else wanted, found.share, suspect)
        yield _components(case, change)
        yield _transposed(case, change)
        yield _swapped(case, suspect)


def _scaled(case: _Case, wanted: Tensor, share: float, suspect: Suspect) -> str:
    """Another multiple of the change."""
    if not case.is_like(share * wanted) or abs(share) < _WHOLE:
        return ""
    if abs(share - 1) < _WHOLE and not case.is_like(share * wanted, _NEAR * abs(share - 1)):
        return ""
    factors = suspect.place.change.factors
    if abs(share + 1) < _WHOLE:
        return "has the adapter taken out of it, not added"
    if factors is None:
        return f"has {share:.4g} times the change"
    made = share * factors.scaling
    names = [name for name, value in _scalings(suspect, factors) if abs(value / made - 1) < _NEAR]
    told = f"is scaled by {made:.4g}, the adapter's scaling is {factors.scaling:.4g}"
    told += f" ({names[0]})" if names else ""
    if abs(share - 2) < _WHOLE:
        return f"has the adapter in it twice{f', or {told}' if names else ''}"
    return told


def _scalings(suspect: Suspect, factors: Factors) -> Iterator[tuple[str, float]]:
    """Mistakes that are made with it."""
    config = suspect.adapter.config
    rank, alpha = factors.rank, config.get("lora_alpha", 8)
    rslora = bool(config.get("use_rslora"))
    yield "alpha / r left out", 1.0
    own = factors.scaling * (rank**0.5 if rslora else rank)
    yield (
        ("alpha / r without rsLoRA's root" if rslora else "alpha / sqrt(r), as of rsLoRA"),
        own / (rank if rslora else rank**0.5),
    )
    if isinstance(alpha, int | float) and not isinstance(alpha, bool):
        yield "alpha_pattern left out", alpha / (rank**0.5 if rslora else rank)
        stated = config.get("r")
        if isinstance(stated, int) and stated > 0:
            yield "rank_pattern left out", own / (stated**0.5 if rslora else stated)
            yield "patterns of ranks and alphas left out", alpha / (stated**0.5 if rslora else stated)
    yield "alpha without r", own
    yield "s twice", factors.scaling**2


def _components(case: _Case, change: Change) -> str:
    """Some of the r components, each by least squares: d with M - W = left diag(d) right."""
    left, right = change.left, change.right
    if left is None or right is None or change.magnitude is not None or len(right) < 2:
        return ""
    gram = (left.T @ left) * (right @ right.T)
    there = (left * (case.moved @ right.T)).sum(0)
    d = torch.linalg.lstsq(gram, there[:, None], driver="gelsd").solution[:, 0]
    whole = (d - d.round()).abs().max() < 2 * _WHOLE and bool(((d.round() == 0) | (d.round() == 1)).all())
    kept = int(d.round().sum()) if whole else 0
    if 0 < kept < len(d) and case.is_like((left * d) @ right):
        return f"has {kept} of the adapter's {len(d)} components: another rank"
    return ""


def _transposed(case: _Case, change: Change) -> str:
    if change.left is None or change.right is None or change.left.shape[0] != change.right.shape[1]:
        return ""
    turned = change.right.T @ change.left.T
    return "has the adapter transposed (fan_in_fan_out)" if case.is_like(turned) else ""


def _swapped(case: _Case, suspect: Suspect) -> str:
    """What the adapter has for another module, those of the same layer first."""
    for module in sorted(suspect.others, key=_distance(suspect))[:_MOST]:
        left, right = sides(suspect.adapter, suspect.others[module], suspect.place.transposed)
        other = left @ right
        if case.means_something(other) and case.is_like(other):
            return f"has what the adapter has for {module}"
    return ""


def _distance(suspect: Suspect) -> Callable[[str], tuple[int, str]]:
    """Of layers, between a module and the place."""

    def number(name: str) -> int:
        found = _NUMBER.search(name)
        return int(found[1]) if found else 0

    return lambda module: (abs(number(suspect.names[module]) - number(suspect.place.name)), module)


def _rounded(W: Tensor, M: Tensor, found: Agreement) -> str:
    """Numbers that went through a narrower type than they are stored in: right ones, or the base's."""
    for kind in (torch.bfloat16, torch.float16):
        narrower = torch.finfo(kind).eps > torch.finfo(M.dtype).eps
        if narrower and bool((M == M.to(kind).to(M.dtype)).all()):
            name = str(kind).removeprefix("torch.")
            if bool((M == W.to(kind).to(M.dtype)).all()):
                return f"differs from the base by rounding to {name} only: the adapter is not in it"
            if found.off <= 2 * roundoff(kind) * (found.whole + found.asked):
                return f"went through {name}, which is narrower than it is stored in"
    return ""


def _by_size(W: Tensor, M: Tensor, found: Agreement) -> str:
    """What is left: how far off it is."""
    size = norm(M)
    cosine = float((M.double() * W.double()).sum()) / (size * found.whole) if size and found.whole else 0.0
    off = found.off / found.whole if found.whole else found.off
    if cosine < _STRANGE:
        return f"is of another model (cosine {cosine:.2f} with the base)"
    if abs(found.share - 1) < 0.5 and found.asked and found.off > 4 * found.rounding:
        told = f"has the adapter in it, and is {found.off / found.asked:.2g} of the change off"
        return f"{told}: another checkpoint of the training was merged, or another base"
    return f"is {off:.2g} of its norm off, {max(found.excess.values()):.3g} times what rounding can do in one entry"
