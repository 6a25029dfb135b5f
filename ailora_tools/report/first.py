"""The first screen: the answer in a sentence, three or four key numbers beside what noise would give, Q against V over
the layers, and the command that comes next. It fits a laptop and a phone without scrolling."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from statistics import mean, median
from typing import Any

from ..methods import symbol
from ..metrics.motion import lr_scales
from ..metrics.noise import noise_effective_rank_share
from . import figures
from .body import Parts
from .drawing import Figure, line_name, series
from .finding import halves
from .motions import motion_at
from .rows import PARTS, Row, change_metric, of_role, once, pairs, roles
from .words import number, percent, typeset

Document = Mapping[str, Any]
Middle = Callable[[Sequence[float]], float]
_HEIGHT = 250
_SECOND = ("kind:", "moved")
_ANSWERS = ("premise:relative_change", "difference:effective_rank_share", "kind:", "energy:", "moved")


def first_screen(parts: Parts, document: Document, rows: Sequence[Row]) -> str:
    """As HTML; its figure goes into `parts`."""
    changed = bool(document["against"])
    numbers = "".join(_changed_numbers(rows) if changed else _numbers(rows, document))
    return (
        f'<section id="first" aria-label="At a glance"><p class="answer">{_answer(document["findings"])}'
        f"{_besides(document['findings'])}</p>"
        f'<div class="glance">{_strip(parts, rows, document)}<div class="keys">{numbers}</div></div>'
        f"{_next(document)}</section>\n"
    )


def _answer(findings: Sequence[Mapping[str, Any]]) -> str:
    """The headline on Q against V, or the first there is."""
    for start in _ANSWERS:
        for finding in findings:
            if finding["id"].startswith(start) and finding.get("headline"):
                return typeset(halves(finding)[0])
    return typeset(halves(findings[0])[0]) if findings else ""


def _besides(findings: Sequence[Mapping[str, Any]]) -> str:
    """What the method would take, or what kind of change it is: a second, quieter sentence."""
    for finding in findings:
        if finding["id"].startswith(_SECOND) and finding.get("headline"):
            return f' <span class="rest">{typeset(halves(finding)[0])}</span>'
    return ""


def _compared(rows: Sequence[Row]) -> list[str]:
    """The two roles of the method where they are there, else the first two."""
    there = roles(rows)
    return list(PARTS) if set(PARTS) <= set(there) else there[:2]


def _strip(parts: Parts, rows: Sequence[Row], document: Document) -> str:
    """Two lines over the layers: the change if there is one, else the effective rank beside that of noise."""
    of = [row for row in rows if row.role in _compared(rows)]
    if document["against"]:
        value: Callable[[Row], float | None] = change_metric(0, "relative_change")
        figure = figures.by_layer(of, value, "‖ΔW‖ / ‖W‖", height=_HEIGHT)
        name = document["against"][0]["name"]
        return parts.card("first", f"How far {name} moved each {of[0].unit}", "Relative to its norm.", figure)
    figure = figures.by_layer(of, lambda row: row.metrics["effective_rank_share"], "effective rank / k", height=_HEIGHT)
    for role in roles(of):
        _add_noise(figure, of_role(of, role))
    return parts.card(
        "first", f"Directions in use, {of[0].unit} by {of[0].unit}",
        "Share of its directions that a matrix really uses; dotted: noise of its shape.", figure,
    )  # fmt: skip


def _add_noise(figure: Figure, rows: Sequence[Row]) -> None:
    """What noise of the shapes of one role would have: a level, or a line where they differ from layer to layer."""
    levels = {row.layer: noise_effective_rank_share(row.shape) for row in rows}
    name = f"noise, {line_name(rows[0].role)}"
    if len(set(levels.values())) > 1:
        line = {"width": 1.5, "dash": "dot", "color": "#888"}
        trace = series(list(levels), list(levels.values()), rows[0].role, name, rows[0].unit)
        figure["data"].append(trace | {"line": line, "mode": "lines"})
        return
    level, shapes = next(iter(levels.values())), figure["layout"].setdefault("shapes", [])
    if all(shape["y0"] != level for shape in shapes):
        shapes.append({
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level, "name": name,
            "line": {"dash": "dot", "width": 1.5, "color": "#888"},
            "label": {"text": name, "textposition": "end", "font": {"size": 11}},
        })  # fmt: skip
    else:
        next(shape for shape in shapes if shape["y0"] == level)["label"]["text"] = "noise"


def _box(label: str, values: str, meaning: str) -> str:
    """One key number; all plain text but `values`."""
    told = f"<strong>{values}</strong><span>{typeset(meaning)}</span>"
    return f'<div><span class="label">{typeset(label)}</span>{told}</div>'


def _each(
    rows: Sequence[Row], value: Callable[[Row], float | None], write: Callable[[float], str], middle: Middle = median
) -> str:
    """Median, or mean, of each compared role, in its colour, as HTML."""
    parts = []
    for role in _compared(rows):
        known = [found for row in once(of_role(rows, role)) if (found := value(row)) is not None]
        if known:
            told = typeset(f"{symbol(role)} {write(middle(known))}")
            parts.append(f'<b class="role {escape(role)}">{told}</b>')
    return " ".join(parts) or "–"


def _expected(rows: Sequence[Row], value: Callable[[Row], float]) -> str:
    """'60.7 %', or '60.7 % and 93.9 %' where the compared roles differ in shape."""
    each = [percent(median(value(row) for row in of_role(rows, role))) for role in _compared(rows)]
    return " and ".join(dict.fromkeys(each))


def _numbers(rows: Sequence[Row], document: Document) -> Iterator[str]:
    rank = document["settings"]["rank"]
    noise = _expected(rows, lambda row: noise_effective_rank_share(row.shape))
    used = _each(rows, lambda row: row.metrics["effective_rank_share"], percent)
    yield _box("Directions in use", used, f"effective rank / k; noise would use {noise}")
    above = _each(rows, lambda row: row.metrics["outlier_share"], percent)
    yield _box("Above the noise edge", above, "of the singular values are structure; noise has none")
    if set(PARTS) <= set(roles(rows)):
        held = _each(rows, lambda row: row.held[row.cuts.at(rank)], percent)
        even = _expected(rows, lambda row: min(1.0, rank / min(row.shape)))
        yield _box(f"AILoRA takes, rank {rank}", held, f"of the energy; an even spectrum would give {even}")
        yield from _speed(rows, rank)


def _speed(rows: Sequence[Row], rank: int) -> Iterator[str]:
    motion = motion_at(rows, rank)
    if len(motion) == len(PARTS) and all(motion.values()):
        scales = lr_scales(motion)
        yield _box(
            "First step, Q : V", f"{number(motion['q'] / motion['v'])} : 1",
            f"at one learning rate; × {number(scales['q'])} and × {number(scales['v'])} would equalise it",
        )  # fmt: skip


def _changed_numbers(rows: Sequence[Row]) -> Iterator[str]:
    def metric(key: str) -> Callable[[Row], float | None]:
        return change_metric(0, key)

    both = pairs(rows, metric("relative_change"))
    more = sum(q > v for q, v in both.values())
    meaning = f"‖ΔW‖ / ‖W‖, means; Q moved more in {more} of {len(both)} {rows[0].unit}s" if both else "‖ΔW‖ / ‖W‖"
    moved = _each(rows, metric("relative_change"), percent, mean)  # as the finding on it has it
    yield _box("How far it moved", moved, meaning)
    side = number(median(min(row.shape) for row in rows))
    above = _each(rows, metric("delta_above"), number)
    yield _box("Directions above noise", above, f"of {side} in the change; noise of its size has 0")
    needed = _each(rows, metric("delta_rank_90"), number)
    yield _box("Rank for 90 % of it", needed, f"of {side}: what an adapter needs to hold the change")
    if any(row.changes[0].placement for row in rows):
        share = _each(rows, lambda row: place.share(0) if (place := row.changes[0].placement) else None, percent)
        chance = median(place.chance(0) for row in rows if (place := row.changes[0].placement))
        yield _box("In the strongest tenth", share, f"of the change; chance would put {percent(chance)} there")


def _next(document: Document) -> str:
    """What to run now, with a button that copies it."""
    location = shlex.quote(document["model"]["location"])
    how = "--ranks ranks.json" if document.get("ranks") else f"--rank {document['settings']['rank']}"
    todo = [("Next: write the adapter", f"ailora-tools init {location} {how}")]
    if not document["against"]:
        todo.append(("or see what tuning changed", f"ailora-tools analyze {location} --against TUNED"))
    lines = "".join(
        f'<div><b>{escape(what)}</b> <code>{escape(command)}</code> <button type="button" class="needs-script" '
        f'data-copy="{escape(command)}" aria-label="Copy the command">Copy</button></div>'
        for what, command in todo
    )
    return f'<div class="next">{lines}</div>'
