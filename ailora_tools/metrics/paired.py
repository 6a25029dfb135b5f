"""Q against V, layer by layer: a paired comparison that assumes no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """Differences first - second over the layers that have both.

    layers: how many pairs. higher, lower: pairs in which the first is larger or smaller; ties are the rest.
    difference: their median, with `low` and `high` the least and the greatest.
    first, second: the medians of both sides. mean_first, mean_second: their means.
    p: two-sided exact sign test, ties left out (Dixon and Mood, JASA 41, 1946); 1.0 without untied pairs.
    """

    layers: int
    higher: int
    lower: int
    difference: float
    low: float
    high: float
    first: float
    second: float
    mean_first: float
    mean_second: float
    p: float

    @property
    def decided(self) -> bool:
        """Whether the sign test rejects "as often above as below" at 5 %."""
        return self.p < 0.05

    def to_json(self) -> dict[str, float | int]:
        """All numbers, for the document."""
        return asdict(self)


def compare(pairs: Sequence[tuple[float, float]]) -> Comparison:
    """Of (first, second) values, one pair a layer; at least one."""
    differences = [first - second for first, second in pairs]
    higher, lower = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    return Comparison(
        layers=len(pairs),
        higher=higher,
        lower=lower,
        difference=median(differences),
        low=min(differences),
        high=max(differences),
        first=median(firsts),
        second=median(seconds),
        mean_first=sum(firsts) / len(pairs),
        mean_second=sum(seconds) / len(pairs),
        p=sign_test(higher, lower),
    )


def sign_test(higher: int, lower: int) -> float:
    """The chance of a split at least as uneven if both signs were equally likely."""
    n, least = higher + lower, min(higher, lower)
    return min(1.0, 2 * sum(comb(n, count) for count in range(least + 1)) / 2**n) if n else 1.0
