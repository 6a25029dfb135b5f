"""Whether an adapter was trained from the start that it is said to come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..adapters.folder import Adapter
from ..errors import TargetError

if TYPE_CHECKING:
    from torch import Tensor

_STRANGER = 0.2  # cosine between all factors before and after training; random ones are far below


class Likeness:
    """The cosine between the factors of all modules and their start; A and B by themselves, the larger of the two."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {"A": [0.0, 0.0, 0.0], "B": [0.0, 0.0, 0.0]}

    def add(self, side: str, now: Tensor, then: Tensor) -> None:
        """One factor, "A" or "B", of one module."""
        found = ((now * then).sum(), now.square().sum(), then.square().sum())
        self._sums[side] = [old + float(new) for old, new in zip(self._sums[side], found, strict=True)]

    @property
    def cosine(self) -> float:
        return max(dot / (now * then) ** 0.5 if now * then > 0 else 0.0 for dot, now, then in self._sums.values())

    def require_descent(self, trained: Adapter, initial: Adapter) -> None:
        """TargetError without any likeness: training moves factors, it does not replace them."""
        if self.cosine < _STRANGER:
            raise TargetError(
                f"{trained.location} was not trained from {initial.location}: the shapes fit, but the factors are not "
                f"like those at the start (cosine {self.cosine:.3f}).",
                "Perhaps the trainer made a new adapter instead of loading this one: see the README in that folder.",
            )
