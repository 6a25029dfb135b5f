"""Ranks from an analysis: more where the spectrum, or the measured change, asks for more (see `RULE`). Pure."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ..errors import OptionError
from ..output.ranks import RANKS_FORMAT, RANKS_VERSION
from ..targets.projections import Plan

RULE = (  # stated in ranks.json
    "spend a budget of adapter parameters one direction at a time, each time on the matrix whose next direction holds "
    "the largest share of that matrix's squared norm per parameter it costs. The singular values are those of the "
    "change that fine-tuning made, where one was analysed (all of them if several), else those of W."
)
UNPROVEN = (  # where there is no change to go by
    "the spectrum of a base has not been shown to predict the rank that training needs; --against goes by the change "
    "that a fine-tune made"
)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def parse_budget(text: str | int, plan: Plan) -> int:
    """An average rank ("8") or a number of parameters ("300k", "2M") -> parameters.

    A plain number is an average rank: the parameters that this rank would cost everywhere. OptionError for
    anything else, and for a budget that is below rank 1 or above full rank everywhere.
    """
    hit = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", str(text).strip())
    if hit is None:
        raise OptionError(
            f"--suggest-ranks {text!r}: neither an average rank nor a number of parameters.", "Such as 8, 300k or 2M."
        )
    costs = [sum(target.shape) for target in plan.targets]
    unit = _UNITS[hit[2].lower()]
    budget = float(hit[1]) * (unit if unit > 1 else sum(costs))
    most = sum(cost * min(target.shape) for cost, target in zip(costs, plan.targets, strict=True))
    if not sum(costs) <= budget <= most:
        raise OptionError(
            f"--suggest-ranks {text!r} is {budget:,.0f} parameters; rank 1 everywhere takes {sum(costs):,} and full "
            f"rank {most:,}.",
            "Choose a budget between them.",
        )
    return int(budget)


def suggest_ranks(document: Mapping[str, Any], budget: int) -> dict[str, Any]:
    """ranks.json: rank and alpha (equal, so that the scaling is 1) of every analysed module; at least rank 1 each."""
    rows = document["matrices"]
    basis = "change" if document["against"] else "weights"
    modules: dict[str, list[Mapping[str, Any]]] = {}  # the projections of a fused module share one rank
    for row in rows:
        modules.setdefault(row["module"], []).append(row)
    gains = [_together([_shares(row, basis) for row in group]) for group in modules.values()]
    costs = [sum(sum(row["shape"]) for row in group) for group in modules.values()]
    limits = [min(min(row["shape"]) for row in group) for group in modules.values()]
    ranks = _spend(gains, costs, limits, budget)
    pattern = dict(zip(modules, ranks, strict=True))
    used = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    return {
        "format": RANKS_FORMAT,
        "version": RANKS_VERSION,
        "rule": RULE if basis == "change" else f"{RULE} Note: {UNPROVEN}.",
        "basis": basis,
        "budget": budget,
        "parameters": used,
        "rank": max(1, round(sum(ranks) / len(ranks))),
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
    }


def _shares(row: Mapping[str, Any], basis: str) -> list[float]:
    """Energy of each direction over that of its matrix; for several fine-tunes, their mean."""
    if basis == "weights":
        return _normalised(row["spectrum"]["singular_values"])
    each = [_normalised(change["delta_singular_values"]) for change in row["changes"]]
    return [value / len(each) for value in _together(each)]


def _together(each: Sequence[Sequence[float]]) -> list[float]:
    """Sums, direction by direction; what ends early counts as zero."""
    return [sum(values) for values in zip_longest(*each, fillvalue=0.0)]


def _normalised(values: Sequence[float]) -> list[float]:
    total = sum(value**2 for value in values)
    return [value**2 / total for value in values] if total else [0.0 for _ in values]


def _spend(gains: Sequence[Sequence[float]], costs: Sequence[int], limits: Sequence[int], budget: int) -> list[int]:
    """Greedy, which is optimal for gains that fall with every direction, up to the last one that still fits."""
    ranks = [1] * len(gains)
    left = budget - sum(costs)
    heap = [(-gain[1] / cost, at) for at, (gain, cost) in enumerate(zip(gains, costs, strict=True)) if len(gain) > 1]
    heapq.heapify(heap)
    while heap:
        _, at = heapq.heappop(heap)
        if costs[at] > left or ranks[at] >= limits[at]:
            continue
        left -= costs[at]
        ranks[at] += 1
        if ranks[at] < len(gains[at]):
            heapq.heappush(heap, (-gains[at][ranks[at]] / costs[at], at))
    return ranks
