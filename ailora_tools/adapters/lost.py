"""Parts of an adapter that are exactly zero and cannot be: a trainer that saved only its own share of a sharded model.

Training moves numbers, it makes no whole row exactly zero. Where the start is at hand, a row, a column or a factor that
was not zero there must not be zero now. Where it is not, B may be zero (a plain LoRA starts so, and what gets no
gradient stays so) but not in some layers alone, nor outside one share of its rows in module after module, and A not
where B uses it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING

from ..errors import TargetError, listed
from .folder import Adapter, Factors

if TYPE_CHECKING:
    from torch import Tensor

_NUMBER = re.compile(r"\.\d+(?=\.)")
_SMALLEST = 6.2e-5  # what a start must have had to be seen as more than nothing in 16 bits
_HINT = (
    "The trainer saved only a part: gather sharded weights before saving (stage3_gather_16bit_weights_on_model_save in "
    "DeepSpeed, a full state dict with FSDP), or use an earlier checkpoint. Modules that were meant to stay zero: "
    "take them out of the file, and name the others in target_modules."
)


def require_whole(
    adapter: Adapter, factors: Mapping[str, Factors], start: Adapter | None, starts: Mapping[str, str],
    fused: Container[str] = (),
) -> list[str]:  # fmt: skip
    """TargetError that names every module of which a part was lost; a notice about modules that change nothing.

    `factors` are those of the adapter by module, `starts` maps modules to those of `start`, if that is at hand; in
    modules of `fused` several projections lie side by side, of which some may be left alone.
    """
    lost: dict[str, list[str]] = {}
    shares: dict[str, list[str]] = {}
    idle, used, unmoved = [], set(), []
    for module, held in factors.items():
        A, B = adapter.load(held.A), adapter.load(held.B)
        if start is not None and module in starts:
            then = start.modules[starts[module]]
            lost[module] = [*_gone(A, start.load(then.A), "A"), *_gone(B, start.load(then.B), "B")]
        elif not held.embedding:
            lost[module] = _unused(A, B)
            rows = [] if module in fused else _one_share(B, "rows of B")
            shares[module] = [*rows, *_one_share(A.T, "columns of A")]
            if A.any() and not B.any():
                unmoved.append(module)
        used |= {_NUMBER.sub(".*", module)} if B.any() else set()
        idle += [] if B.any() and A.any() else [module]
    if 2 * sum(map(bool, shares.values())) >= len(factors) - len(idle):  # in module after module
        lost = {module: [*found, *shares.get(module, ())] for module, found in lost.items()}
    for module in unmoved:  # modules of its kind were trained, and only experts may get nothing to do
        if _NUMBER.sub(".*", module) in used and ".experts." not in module:
            lost[module] = [*lost[module], "all of B"]
    faults = [f"{module}: {text}" for module, found in lost.items() for text in found]
    if faults:
        raise TargetError(
            f"{adapter.location} is incomplete, for training leaves no part exactly zero: {listed(faults, 4)}.", _HINT
        )
    told = f"{len(idle)} of {len(factors)} modules change nothing, their A or B is exactly zero: {listed(idle)}"
    return [told] if idle else []


def _gone(now: Tensor, then: Tensor, side: str) -> list[str]:
    """Rows and columns that were something at the start and are nothing now; what was filled up to a larger rank lies
    behind them."""
    now = now[: then.shape[0], : then.shape[1]]
    if now.shape != then.shape:
        return []
    if not now.any() and bool(then.any()):
        return [f"all of {side}"]
    told = []
    for axis, kind in ((1, "rows"), (0, "columns")):
        zero = (now == 0).all(axis) & (then.abs().amax(axis).float() > _SMALLEST)
        if bool(zero.any()):
            told.append(f"{int(zero.sum())} of {len(zero)} {kind} of {side}")
    return told


def _unused(A: Tensor, B: Tensor) -> list[str]:
    """Rows of A that are zero though B uses them: an empty component is empty on both sides."""
    rows = (A == 0).all(1) & (B != 0).any(0)
    return [f"{int(rows.sum())} of {len(A)} rows of A"] if bool(rows.any()) and bool(A.any()) else []


def _one_share(M: Tensor, what: str) -> list[str]:
    """Where everything outside one share of N rows, N at least 2, is zero, and nothing inside is."""
    used = (M != 0).any(1)
    count, total = int(used.sum()), len(used)
    if count == 0 or 2 * count > total or total % count:
        return []
    first = int(used.nonzero()[0])
    whole = bool(used[first : first + count].all()) and first % count == 0
    return [f"{total - count} of {total} {what}"] if whole and count > 1 else []
