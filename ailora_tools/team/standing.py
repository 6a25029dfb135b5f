"""How far all processes are, from what each says with its signs of life."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from time import monotonic

from ..progress import Standing
from .item import Item
from .team import Job

_ALIKE = 0.9  # of what the fastest has done: who has done so much is not called slow


def standing(job: Job, items: Sequence[Item], left: Collection[Item]) -> Callable[[], Standing]:
    """What the first process shows: `items` are all of the stage, `left` those that are to be done from now on."""
    began, before = monotonic(), job.pulse.said()
    rest, behind = sum(item.cost for item in left), len(items) - len(left)

    def look() -> Standing:
        now = job.pulse.said()

        def gained(what: str) -> list[float]:
            return [now.get(at, {}).get(what, 0) - before.get(at, {}).get(what, 0) for at in range(job.place.size)]

        costs = gained("cost")
        share = min(1.0, sum(costs) / rest) if rest else 1.0
        return Standing(
            job.place.size, min(len(items), behind + int(sum(gained("done")))), len(items), int(sum(gained("bytes"))),
            (monotonic() - began) * (1 - share) / share if share else None,
            costs.index(min(costs)) if min(costs) < _ALIKE * max(costs) else None,
        )  # fmt: skip

    return look
