"""What an analysis says, in plain sentences: each with its numbers, how sure they are, and no verdict beyond them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from ..methods import ROLES, SURVIVAL_WANTED, symbol
from ..metrics.motion import lr_scales
from ..metrics.noise import noise_effective_rank_share
from ..metrics.paired import Comparison, compare
from .changes import change_findings, places_of
from .finding import Finding, Kind, told
from .motions import motion_at
from .rows import PARTS, Row, copies, distinct_pairs, of_role, once, read_rows, roles
from .stacks import counted
from .words import number, percent, spread

_FIRST = ("kind:", "premise:relative_change")
_STANDS_OUT = 3.5  # modified z score (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)


def find(document: Mapping[str, Any]) -> list[Finding]:
    """The findings of an analysis document, most telling first, as `finding.told` makes them."""
    rows, rank = read_rows(document), document["settings"]["rank"]
    distinct = once(rows)
    found = [*_skipped(document), *_copies(rows)]
    changes = [change_findings(rows, at, tuned["name"]) for at, tuned in enumerate(document["against"])]
    # What each fine-tune did at all comes before the details of any of them.
    for first in (True, False):
        found += [finding for each in changes for finding in each if finding["id"].startswith(_FIRST) == first]
    found += [
        *_difference(rows, "effective_rank_share", "spreads its energy over", "directions", "effective rank / k"),
        *_difference(
            rows, "outlier_share", "has", "singular values above the noise edge", "values above the noise edge / k"
        ),
        *_moved(distinct, rank),
        *_motion(rows, rank),
        *_survival(distinct, rank),
        *_energy(distinct),
        *_outstanding(distinct),
    ]
    if not document["against"] and {"q", "v"} <= set(roles(rows)):
        found.append(_premise(rows))
    return found


def certainty(found: Comparison, over: str) -> str:
    """'median of Q − V: 0.1, range -0.2 to 0.3; Q higher in 9 of 12 layers, sign test p = 0.146', over '12 layers'."""
    if found.layers == 1:
        return "1 layer alone: nothing to test"
    count, word = (found.higher, "higher") if found.higher >= found.lower else (found.lower, "lower")
    return (
        f"median of Q − V: {number(found.difference)}, range {number(found.low)} to {number(found.high)}; "
        f"Q {word} in {count} of {over}, sign test p = {number(found.p)}"
    )


def _skipped(document: Mapping[str, Any]) -> Iterator[Finding]:
    skipped = document["skipped"]
    if skipped:
        total = len(skipped) + len(document["matrices"])
        reason = f": {skipped[0]['reason']}" + (f" And {len(skipped) - 1} more." if len(skipped) > 1 else "")
        headline = f"{len(skipped)} of {total} matrices could not be analysed and are left out everywhere"
        yield told("skipped", "warning", headline, reason, {"skipped": len(skipped), "of": total})


def _copies(rows: Sequence[Row]) -> Iterator[Finding]:
    """Stacked and tied layers are the same evidence again."""
    found = copies(rows)
    if found:
        named = ", ".join(f"{label} of {first}" for label, first in list(found.items())[:3])
        which = places_of([row for row in rows if row.label in found])
        yield told(
            "copies", "warning", f"{len(found)} of {len(rows)} matrices ({which}) are copies of others",
            f": {named}{', ...' if len(found) > 3 else ''}. Each of the {len(rows) - len(found)} distinct ones counts "
            "once in medians, counts and sign tests; figures and tables show all.",
            {"copies": len(found), "of": len(rows)},
        )  # fmt: skip


def _difference(rows: Sequence[Row], key: str, verb: str, what: str, label: str) -> Iterator[Finding]:
    """Does Q differ from V in one metric, over the layers?"""
    both = distinct_pairs(rows, lambda row: row.metrics[key])
    if not both:
        return
    found = compare(list(both.values()))
    medians = f"{number(found.first)} against {number(found.second)} "
    medians += f"(medians; {certainty(found, counted(both, rows[0].unit))})"
    kind: Kind = "result"
    if found.decided:
        headline = f"W^Q {verb} {'more' if found.difference > 0 else 'fewer'} {what} than W^V"
        rest = f": {label} {medians}."
    else:
        kind, headline, rest = "none", f"By {label} the data do not tell W^Q from W^V", f": {medians}."
    if key == "effective_rank_share":
        rest += _by_shape(rows)
    yield told(f"difference:{key}", kind, headline, rest, found.to_json())


def _by_shape(rows: Sequence[Row]) -> str:
    """Wide matrices look flatter than square ones: what the shapes alone would give, where they differ."""
    shapes = [{row.shape for row in of_role(rows, role)} for role in "qv"]
    if shapes[0] == shapes[1]:
        return ""
    noise = [spread([noise_effective_rank_share(shape) for shape in of]) for of in shapes]
    return f" Their shapes differ: noise of these shapes alone would have {noise[0]} against {noise[1]}."


def _moved(rows: Sequence[Row], rank: int) -> Iterator[Finding]:
    """How much AILoRA would move at this rank."""
    parts = {role: [row.held[row.cuts.at(rank)] for row in of_role(rows, role)] for role in PARTS}
    if all(parts.values()):
        middle = {role: median(values) for role, values in parts.items()}
        yield told(
            "moved", "result",
            f"At rank {rank} the principal part of W^Q holds {percent(middle['q'])} of its energy, the minor part of "
            f"W^V {percent(middle['v'])}",
            f" (medians over {len(parts['q'])} and {len(parts['v'])} matrices, with their ranges: "
            f"{spread(parts['q'], shares=True)} and {spread(parts['v'], shares=True)}).",
            {"rank": rank, "q_median": middle["q"], "v_median": middle["v"]},
        )  # fmt: skip


def _motion(rows: Sequence[Row], rank: int) -> Iterator[Finding]:
    """How much faster AILoRA's adapter of W^Q would move its matrix than that of W^V."""
    motion = motion_at(rows, rank)
    if len(motion) == 2 and all(motion.values()):
        scales = lr_scales(motion)
        yield told(
            "motion", "advice",
            f"At one learning rate the first step of Adam moves W^Q {number(motion['q'] / motion['v'])} times as far "
            "as W^V",
            f", for their norms, if adapters of rank {rank} start as AILoRA's; learning rates × {number(scales['q'])} "
            f"for W^Q and × {number(scales['v'])} for W^V would equalise it (`init` writes them).",
            {"rank": rank, "q_motion": motion["q"], "v_motion": motion["v"]},
        )  # fmt: skip


def _energy(rows: Sequence[Row]) -> Iterator[Finding]:
    """Which rank holds 90 % of the energy."""
    for role in roles(rows, ROLES):
        of = of_role(rows, role)
        needed = {share: [row.metrics[f"rank_{share}"] for row in of] for share in (50, 90, 99)}
        known = {share: [value for value in values if value is not None] for share, values in needed.items()}
        if all(known.values()):
            sides = spread([float(min(row.shape)) for row in of])
            yield told(
                f"energy:{role}", "result",
                f"90 % of the energy of {symbol(role)} needs rank {number(median(known[90]))} of {sides}",
                f": 50 % needs rank {spread(known[50])}, 90 % rank {spread(known[90])} and 99 % rank "
                f"{spread(known[99])}.",
                {f"rank_{share}": median(values) for share, values in known.items()},
            )  # fmt: skip


def _survival(rows: Sequence[Row], rank: int) -> Iterator[Finding]:
    """Would the minor components of V survive storage in bfloat16?"""
    values = [row.cuts.bottom_survival[row.cuts.at(rank)] for row in of_role(rows, "v")]
    if values:
        lost = sum(value < SURVIVAL_WANTED for value in values)
        verdict = (
            f"{lost} of {len(values)} would keep less than {SURVIVAL_WANTED}: `init` rounds those stochastically"
            if lost
            else f"all {len(values)} would keep at least {SURVIVAL_WANTED}"
        )
        yield told(
            "survival", "warning" if lost else "result",
            f"Stored in bfloat16 and rounded to nearest, {number(median(values))} of a rank-{rank} minor surgery on "
            "W^V is predicted to survive",
            f": {spread(values)} over the matrices; {verdict}.",
            {"rank": rank, "median": median(values), "least": min(values), "below": lost},
        )  # fmt: skip


def _outstanding(rows: Sequence[Row]) -> Iterator[Finding]:
    """Layers far from the others of their role, by a robust score."""
    scores = [score for role in roles(rows, ROLES) for score in _scores(of_role(rows, role))]
    if scores:
        far = sorted((score for score in scores if abs(score[0]) > _STANDS_OUT), key=lambda score: -abs(score[0]))
        names = ", ".join(f"{label} ({number(value)}, score {number(score)})" for score, label, value in far[:5])
        greatest = max(abs(score) for score, _, _ in scores)
        found = {"count": len(far), "largest_score": greatest}
        if far:
            headline = (
                f"{len(far)} of {len(scores)} matrices stand out from the others of their role by effective rank / k"
            )
            rest = f", beyond a modified z score of {_STANDS_OUT}: {names}{', ...' if len(far) > 5 else ''}."
            yield told("outstanding", "result", headline, rest, found)
        else:
            headline = "No matrix stands out by effective rank / k"
            rest = f": the largest modified z score is {number(greatest)}, below {_STANDS_OUT}."
            yield told("outstanding", "none", headline, rest, found)


def _scores(rows: Sequence[Row]) -> list[tuple[float, str, float]]:
    known = [
        (row.metrics["effective_rank_share"], row.label)
        for row in rows
        if row.metrics["effective_rank_share"] is not None
    ]
    if len(known) < 4:
        return []
    centre = median(value for value, _ in known)
    deviation = median(abs(value - centre) for value, _ in known)
    if deviation == 0:
        return []
    return [(0.6745 * (value - centre) / deviation, label, value) for value, label in known]


def _premise(rows: Sequence[Row]) -> Finding:
    places = {row.place for row in rows}
    return told(
        "premise", "advice",
        "Whether fine-tuning changes W^Q more than W^V, as AILoRA assumes, cannot be seen in 1 checkpoint",
        f": give a fine-tuned one with --against to compare all {counted(places, rows[0].unit)}.",
        {"checkpoints": 1, "layers": len(places)},
    )  # fmt: skip
