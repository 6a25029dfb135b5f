"""What fine-tuning changed, in sentences: first what kind of change it is at all, then Q against V, then where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, median

from ..methods import ROLES, symbol
from ..metrics.paired import Comparison, compare
from .finding import Finding, Kind, told
from .rows import Placement, Row, change_metric, copies, distinct_pairs, of_role, once, roles
from .stacks import counted
from .words import number, percent, ranges, spread

_ROUNDING = 1.2  # times the rms of rounding: a change no larger cannot be told from it
_LEFT = 1.5
_LOW_RANK = 0.9  # share of the change's energy above its noise edge
_CAVEAT = " Alone this view misleads where the two differ in shape or in ‖W‖."
_EVEN = 0.25  # relative distance to chance that every tenth of the spectrum of a change without structure keeps

KINDS = {
    "identical": "identical to the original, element by element",
    "rescaled": "the original times a constant, within rounding",
    "rounding": "within what storing it in its number type does: no change beyond rounding",
    "noise": "within noise: no singular value above the noise edge of ΔW and no preferred directions",
    "low rank": "of low rank",
    "structured": "structured",
}


def kind(row: Row, at: int) -> str:
    """Which of `KINDS` the change of one matrix is, from its numbers."""
    found = row.changes[at].metrics
    if not found["changed"]:
        return "identical"
    size = (row.shape[0] * row.shape[1]) ** 0.5
    rounding = found["rounding_rms"] * size
    norm = found["delta_norm"] / found["relative_change"] if found["relative_change"] else 0.0
    rest = (found["rescaled_change"] or 0.0) * norm
    if rest <= max(_LEFT * rounding, 1e-6 * norm) and abs(found["scale"] - 1) * norm > 3 * rest:
        return "rescaled"
    if found["delta_rms"] <= _ROUNDING * found["rounding_rms"]:
        return "rounding"
    if not found["delta_above"]:
        return "noise" if _even(row.changes[at].placement) else "structured"
    return "low rank" if found["delta_above_energy"] >= _LOW_RANK else "structured"


def _even(placement: Placement | None) -> bool:
    """Whether every tenth of the spectrum takes about its chance of the change."""
    return placement is not None and all(
        abs(share - chance) <= _EVEN * chance
        for side in ("output", "input")
        for share, chance in zip(placement.deciles[side], placement.deciles[f"chance_{side}"], strict=True)
    )


def change_findings(rows: Sequence[Row], at: int, name: str) -> list[Finding]:
    """All findings about fine-tune number `at`, which is called `name`."""
    kinds = {row.label: kind(row, at) for row in rows}
    real = [row for row in rows if kinds[row.label] in ("low rank", "structured", "noise")]
    distinct = once(rows, at)
    found = [*_copies(rows, at, name), *_against(rows, real, at, name), *_kinds(rows, at, name, kinds)]
    if any(kinds[row.label] in ("low rank", "structured") for row in rows):
        found += [*_rank(distinct, at, name, kinds), *_placement(distinct, at, name), *_intruders(distinct, at, name)]
    if real:
        found += _depth(rows, at, name)
    return [{**finding, "against": at} for finding in found]


def _copies(rows: Sequence[Row], at: int, name: str) -> Iterator[Finding]:
    """Copies that were changed alike are one observation, copies that were changed apart are several."""
    before, after = copies(rows), copies(rows, at)
    if before:
        alike = (
            "were changed alike and count once here, too"
            if len(after) == len(before)
            else f"{len(after)} were changed alike and count once here, too; the others count for themselves"
        )
        all_ = "all " if len(after) == len(before) else ""
        headline = f"{name}: of the {len(before)} copies {all_}{alike}"
        yield told("copies:changed", "warning", headline, ".", {"copies": len(after), "of": len(before)})


def _kinds(rows: Sequence[Row], at: int, name: str, kinds: Mapping[str, str]) -> Iterator[Finding]:
    """What the change is at all, by the number of matrices."""
    for which, meaning in KINDS.items():
        members = [row for row in rows if kinds[row.label] == which]
        if members:
            count = f"all {len(rows)}" if len(members) == len(rows) else f"{len(members)} of {len(rows)}"
            where = "" if len(members) == len(rows) else f" ({places_of(members)})"
            headline = f"{name}: the change of {count} matrices{where} is {meaning}"
            if which == "identical":
                headline = f"{name}: {count} matrices{where} are {meaning}: nothing changed"
            news: Kind = "result" if which in ("low rank", "structured", "rescaled") else "none"
            numbers = {"matrices": len(members), "of": len(rows)}
            yield told(f"kind:{which}", news, headline, f"; {_evidence(members, at, which)}.", numbers)


def _evidence(rows: Sequence[Row], at: int, which: str) -> str:
    found = [row.changes[at].metrics for row in rows]
    relative = [value["relative_change"] or 0.0 for value in found]
    above = [value["delta_above"] for value in found]
    if which == "identical":
        return f"0 of {sum(row.shape[0] * row.shape[1] for row in rows):,} elements differ"
    if which == "rescaled":
        rest = spread([value["rescaled_change"] for value in found])
        return f"the constant is {spread([value['scale'] for value in found])}, what is left is {rest} of ‖W‖"
    if which == "rounding":
        ratio = spread([value["delta_rms"] / value["rounding_rms"] for value in found])
        return f"its rms is {ratio} times that of rounding, ‖ΔW‖/‖W‖ {spread(relative)}"
    if which == "noise":
        share = spread([value["delta_effective_rank_share"] for value in found])
        return f"0 values above the edge, effective rank of ΔW / k {share}, ‖ΔW‖/‖W‖ {spread(relative)}"
    energy = spread([value["delta_above_energy"] for value in found], shares=True)
    return f"{spread(above)} singular values above the noise edge hold {energy} of it, ‖ΔW‖/‖W‖ {spread(relative)}"


def _against(rows: Sequence[Row], real: Sequence[Row], at: int, name: str) -> Iterator[Finding]:
    """AILoRA's premise: does Q change more than V? Only where there is a change that is not rounding or rescaling."""
    if not real:
        return
    for key, label in (("relative_change", "‖ΔW‖/‖W‖"), ("delta_norm", "‖ΔW‖, which the paper looks at,")):
        both = distinct_pairs(rows, change_metric(at, key), at)
        if not both:
            return
        found = compare(list(both.values()))
        more = [layer for (_, layer), (q, v) in both.items() if q > v]
        over = counted(both, rows[0].unit)
        tested = (
            f"median of Q − V: {number(found.difference)}, range {number(found.low)} to {number(found.high)}; Q higher "
            f"in {found.higher} of {over}{_layers(more, found)}, sign test p = {number(found.p)}"
            if found.layers > 1
            else "nothing to test"
        )
        yield told(
            f"premise:{key}", "result" if found.decided else "none", f"{name}: {_premise(found, key)}",
            f": {label} is {number(found.mean_first)} for W^Q against {number(found.mean_second)} for W^V (means over "
            f"{over}; {tested})." + (_CAVEAT if key == "delta_norm" else ""),
            found.to_json(),
        )  # fmt: skip


def _premise(found: Comparison, key: str) -> str:
    more, less = ("W^Q", "W^V") if found.mean_first > found.mean_second else ("W^V", "W^Q")
    if found.mean_first == found.mean_second:
        return "W^Q and W^V changed equally"
    holds = "AILoRA's assumption holds here" if more == "W^Q" else "AILoRA's assumption does not hold here"
    if not found.decided:
        view = "" if key == "relative_change" else " un-normalised"
        return f"{more} changed slightly more than {less}{view}, too unevenly over the layers to call it a difference"
    return f"{more} changed more than {less}" + (f" ({holds})" if key == "relative_change" else " un-normalised")


def _layers(more: Sequence[int], found: Comparison) -> str:
    return f" ({ranges(set(more))})" if 0 < len(more) < found.layers else ""


def _rank(rows: Sequence[Row], at: int, name: str, kinds: Mapping[str, str]) -> Iterator[Finding]:
    """How many directions the change has, beside the edge they must beat."""
    for role in roles(rows, ROLES):
        of = [row.changes[at].metrics for row in of_role(rows, role) if kinds[row.label] in ("low rank", "structured")]
        if of:
            above = median(m["delta_above"] for m in of)
            yield told(
                f"rank:{role}", "result" if above else "none",
                f"{name}: the change of {symbol(role)} has {spread([m['delta_above'] for m in of])} singular values "
                "above its noise edge",
                f" and {spread([m['rounding_above'] for m in of])} above the rounding edge; 90 % of its energy needs "
                f"rank {spread([m['delta_rank_90'] for m in of])}.",
                {"above": above},
            )  # fmt: skip


def _placement(rows: Sequence[Row], at: int, name: str) -> Iterator[Finding]:
    """Does Q learn in the top of its spectrum, V in the bottom?"""
    parts = []
    numbers: dict[str, float] = {}
    for role, tenth, index in (("q", "strongest", 0), ("v", "strongest", 0), ("v", "weakest", -1)):
        known = [place for row in of_role(rows, role) if (place := row.changes[at].placement)]
        if not known:
            return
        share, chance = (median(place.share(index) for place in known), median(place.chance(index) for place in known))
        numbers[f"{role}_{tenth}"] = share
        parts.append(f"the {tenth} tenth of {symbol(role)} takes {percent(share)} of its change ({percent(chance)})")
    yield told(
        "placement", "result", f"{name}: {parts[0]}, {parts[1]}",
        f"; {parts[2]} (medians; in brackets what chance would put there).", numbers,
    )  # fmt: skip


def _intruders(rows: Sequence[Row], at: int, name: str) -> Iterator[Finding]:
    places = [row.changes[at].placement for row in rows]
    counts = [place.intruders for place in places if place and place.intruders]
    if counts:
        new, of = (sum(values) for values in zip(*counts, strict=True))
        yield told(
            "intruders", "result" if new else "none",
            f"{name}: {new} of the {of} leading left singular vectors after tuning are intruders",
            ", with no cosine of 0.5 or more to any vector before; they lie in "
            f"{sum(count > 0 for count, _ in counts)} of {len(counts)} matrices.",
            {"intruders": new, "of": of},
        )  # fmt: skip


def _depth(rows: Sequence[Row], at: int, name: str) -> Iterator[Finding]:
    """The profile over depth, in thirds, and the layers that did not change."""
    layers: dict[int, list[float]] = {}
    for row in rows:
        layers.setdefault(row.layer, []).append(row.changes[at].metrics["relative_change"] or 0.0)
    if len({row.stack for row in rows}) > 1 or len(layers) < 3:
        return
    profile = [mean(layers[layer]) for layer in sorted(layers)]
    cut = [round(len(profile) * part / 3) for part in range(4)]
    thirds = [mean(profile[cut[part] : cut[part + 1]]) for part in range(3)]
    greatest = max(range(3), key=thirds.__getitem__)
    still = [layer for layer, values in layers.items() if not any(values)]
    yield told(
        "depth", "result", f"{name}: {_shape(thirds, greatest)}",
        f": over depth ‖ΔW‖/‖W‖ is {number(thirds[0])} in the first third of the layers, {number(thirds[1])} in the "
        f"middle and {number(thirds[2])} in the last (means)"
        + (f"; layers {ranges(still)} did not change at all" if still else "") + ".",
        {"first": thirds[0], "middle": thirds[1], "last": thirds[2], "unchanged": len(still)},
    )  # fmt: skip


def _shape(thirds: Sequence[float], greatest: int) -> str:
    first, middle, last = thirds
    ratio = f"{number(max(thirds) / min(thirds))} times the smallest" if min(thirds) > 0 else "the smallest is 0"
    if min(first, last) > middle:
        return f"the early and the late layers changed more than the middle, {ratio}"
    if middle > max(first, last):
        return f"the middle layers changed most, {ratio}"
    return f"it changed most in the {('first', 'middle', 'last')[greatest]} third, {ratio}"


def places_of(rows: Sequence[Row]) -> str:
    """'q 0-3, v 1' for the matrices of one kind."""
    parts = []
    for role in roles(rows, ROLES):
        for stack in sorted({row.stack for row in of_role(rows, role)}):
            numbers = {row.layer for row in of_role(rows, role) if row.stack == stack}
            parts.append(" ".join(part for part in (role, stack, ranges(numbers)) if part))
    return "; ".join(parts)
