"""What the lines of the study say: each method at its own learning rate, and two methods beside each other. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One arm at its best learning rate. `loss` and `score`: of the test texts, by seed. `edge`: the best rate is at
    an end of those tried. `by_rate`: dev losses by learning rate, over the seeds. `curve`: (step, median dev loss).
    `reached`: by seed, the first look at or below LoRA's final dev loss, None where there is none. `other`: change of
    the measure of other text, by seed. `drift`: relative change of W^Q and W^V at seed 0."""

    arm: str
    trained: int
    lr: float
    edge: bool
    loss: Mapping[int, float]
    score: Mapping[int, float]
    by_rate: Mapping[float, Sequence[float]]
    curve: Sequence[tuple[int, float]]
    reached: Sequence[int | None]
    other: Mapping[int, float]
    drift: Mapping[str, float]

    @property
    def middle(self) -> float:
        """Median test loss over the seeds."""
        return median(self.loss.values())


def outcomes(lines: Sequence[Line]) -> list[Outcome]:
    """All arms, lowest median test loss first."""
    arms: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: int(line["seed"])):
        arms.setdefault(line["arm"], []).append(line)
    target = None
    if "lora" in arms:
        target = median(number(line["dev"]["loss"]) for line in _at_best(arms["lora"])[1])
    return sorted((_outcome(arm, found, target) for arm, found in arms.items()), key=lambda one: one.middle)


def _outcome(arm: str, lines: Sequence[Line], target: float | None) -> Outcome:
    lr, best = _at_best(lines)
    rates = sorted({line["lr"] for line in lines})
    seeds = {line["seed"]: line for line in best}
    return Outcome(
        arm=arm,
        trained=best[0]["trained"],
        lr=lr,
        edge=lr in (rates[0], rates[-1]),
        loss={seed: number(line["test"]["loss"]) for seed, line in seeds.items()},
        score={seed: number(line["test"]["score"]) for seed, line in seeds.items()},
        by_rate={rate: [number(line["dev"]["loss"]) for line in lines if line["lr"] == rate] for rate in rates},
        curve=_curve(best),
        reached=[_reached(line, target) for line in seeds.values()],
        other={seed: _other(line) for seed, line in seeds.items()},
        drift=next((line["drift"] for line in best if line["drift"]), {}),
    )


def _at_best(lines: Sequence[Line]) -> tuple[float, list[Line]]:
    """The learning rate with the lowest median dev loss, and its lines. Only rates with all the seeds of the form
    take part (or as many as any has): one lucky seed decides nothing, nor do further seeds at the best rate alone."""
    by_rate: dict[float, dict[int, float]] = {}
    for line in lines:
        by_rate.setdefault(line["lr"], {})[line["seed"]] = number(line["dev"]["loss"])
    needed = min(lines[0]["form"]["seeds"], max(map(len, by_rate.values())))
    middles = {lr: median(list(seeds.values())[:needed]) for lr, seeds in by_rate.items() if len(seeds) >= needed}
    lr = min(sorted(middles), key=lambda rate: middles[rate])
    return lr, [line for line in lines if line["lr"] == lr]


def _curve(lines: Sequence[Line]) -> list[tuple[int, float]]:
    steps: dict[int, list[float]] = {}
    for line in lines:
        for look in line["looks"]:
            steps.setdefault(look["step"], []).append(number(look["loss"]))
    return [(step, median(losses)) for step, losses in sorted(steps.items())]


def _reached(line: Line, target: float | None) -> int | None:
    if target is None:
        return None
    return next((look["step"] for look in line["looks"] if number(look["loss"]) <= target), None)


def _other(line: Line) -> float:
    return number(line["other_text"]["after"]) - number(line["other_text"]["before"])


def number(value: float | None) -> float:
    """A loss as it was written: null stands for one that diverged."""
    return math.inf if value is None else float(value)


@dataclass(frozen=True)
class Contest:
    """Test losses of two arms. `apart`: no seed of one lies within the range of the other; `chance`: how often that
    happens to two arms that do not differ, if all orders are equally likely (a permutation test). `lower`: seeds in
    which the first is lower, of `pairs` that both have (the same texts in the same order); `difference`: their
    median difference, first - second."""

    first: Outcome
    second: Outcome
    apart: bool
    chance: float
    lower: int
    pairs: int
    difference: float


def contest(first: Outcome, second: Outcome) -> Contest:
    """Two arms, each at its own learning rate."""
    one, two = list(first.loss.values()), list(second.loss.values())
    differences = [first.loss[seed] - second.loss[seed] for seed in first.loss.keys() & second.loss.keys()]
    return Contest(
        first,
        second,
        apart=max(one) < min(two) or max(two) < min(one),
        chance=2 / comb(len(one) + len(two), len(one)),
        lower=sum(value < 0 for value in differences),
        pairs=len(differences),
        difference=median(differences) if differences else math.nan,
    )


def at_one_rate(found: Sequence[Outcome], lr: float) -> dict[str, float]:
    """Median dev loss of every arm that was tried at this learning rate."""
    return {one.arm: median(one.by_rate[lr]) for one in found if lr in one.by_rate}
