"""The sections of the report, top to bottom: HTML with places for figures, and the figures that go there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ..methods import symbol
from ..metrics.definitions import DEFINITIONS
from . import change_figures, figures, maps
from .body import Parts
from .chosen import targets_section
from .drawing import Figure, aligned
from .finding import halves
from .first import first_screen
from .motions import motion_by_layer, motion_by_rank
from .rows import AILORA, Row, change_metric, of_stack, roles, stacks
from .stacks import titled
from .table import table_section
from .words import raised, typeset

Document = Mapping[str, Any]
_KINDS = {"warning": "Mind", "result": "Found", "advice": "To do"}  # word on each box; nulls stand together
_HELP = (
    '<details open class="help"><summary>How to read this page</summary><p>A matrix stretches some input directions '
    "more than others; its singular values are these factors, largest first. A steep curve means few directions "
    "matter, a flat one that all do. The noise edge is what a matrix of random numbers with the same bulk and shape "
    "would reach: only values above it are structure. Where Q and V are compared, layers are paired and a sign test "
    "says how likely such an uneven split would be by chance (p below 0.05 counts as a difference; with many metrics "
    "some will be so by chance). No figure smooths or drops layers; hover, tap, or open “Numbers” below a figure.</p>"
    "</details>"
)


def build(document: Document, rows: Sequence[Row]) -> Parts:
    """All sections of one document, whose matrices are `rows`."""
    parts = Parts()
    parts.html += first_screen(parts, document, rows)
    _findings(parts, document)
    if document["against"]:
        _changes(parts, rows, document["against"])
    if document.get("targets"):
        targets_section(parts, rows, document)
    parts.section(
        "overview", "Layers at a glance",
        "One cell a matrix, in the order of the model. Colours run from the 2nd to the 98th percentile, so that one "
        "outlier cannot flatten the rest. Click a cell, or move with the arrow keys and press Enter, for its layer.",
        parts.map("weights", maps.overview(rows), "effective_rank_share"),
    )  # fmt: skip
    _spectra(parts, rows)
    _energy(parts, rows, document["settings"]["rank"])
    _elements(parts, rows, document["against"])
    _heads(parts, rows)
    if document.get("ranks"):
        _ranks(parts, rows, document["ranks"])
    parts.section(*table_section(rows, document))
    _terms(parts)
    return parts


def _findings(parts: Parts, document: Document) -> None:
    notes = [f'<p class="note">{typeset(text)}</p>' for text in document["notices"]]
    notes += [
        f'<p class="note">Left out: {escape(row["reason"].removeprefix(row["tensor"] + ": "))} '
        f"(<code>{escape(row['tensor'])}</code>)</p>"
        for row in document["skipped"]
    ]
    told = [finding for finding in document["findings"] if finding["id"] != "skipped" or not notes]
    of = {kind: [each for each in told if each.get("kind", "result") == kind] for kind in (*_KINDS, "none")}
    boxes = "".join(_finding(each, kind) for kind in _KINDS for each in of[kind])
    body = f'{"".join(notes)}<ul class="findings">{boxes}</ul>'
    if of["none"]:
        lines = "".join(f"<li>{_told(each)}</li>" for each in of["none"])
        body += f'<div class="nulls"><h3>Looked for and not seen</h3><ul>{lines}</ul></div>'
    parts.section(
        "findings", "Findings",
        "Computed from the numbers below. W^Q decides where a head looks, W^V what it carries along; the singular "
        "values of each say how many directions it uses and how strongly. AILoRA starts the adapter of W^Q from the "
        "strongest directions and that of W^V from the weakest.",
        body + _HELP,
    )  # fmt: skip


def _finding(finding: Mapping[str, Any], kind: str) -> str:
    return f'<li class="{kind}"><span class="kind">{_KINDS[kind]}</span>{_told(finding)}</li>'


def _told(finding: Mapping[str, Any]) -> str:
    headline, rest = halves(finding)
    more = f' <span class="rest">{typeset(rest)}</span>' if rest else ""
    return f"<b>{typeset(headline)}</b>{more}"


Draw = Callable[[Sequence[Row], str], Figure]
Named = Callable[[str], tuple[str, str, str]]  # of a role: name, title, text


def _by_stack(parts: Parts, rows: Sequence[Row], there: Sequence[str], named: Named, draw: Draw, more: str = "") -> str:
    """A card for each role in each stack, with one y axis for all stacks of a role: none is mixed with another."""
    names = stacks(rows)
    made: dict[tuple[str, str], Figure] = {}
    for role in there:
        own = [stack for stack in names if any(row.role == role for row in of_stack(rows, stack))]
        drawn = aligned([draw(of_stack(rows, stack), role) for stack in own])
        made |= {(stack, role): figure for stack, figure in zip(own, drawn, strict=True)}
    cards = []
    for stack in names:
        for role in there:
            if (stack, role) in made:
                name, title, text = named(role)
                key = f"{name}-{names.index(stack)}" if len(names) > 1 else name
                cards.append(parts.card(key, titled(title, stack, names), text, made[stack, role], more))
    return "".join(cards)


def _spectra(parts: Parts, rows: Sequence[Row]) -> None:
    cards = _by_stack(
        parts, rows, roles(rows),
        lambda role: (f"spectra-{role}", f"All singular values of {symbol(role)}",
                      f"One line a {rows[0].unit}, from blue for the first to yellow for the last."),
        figures.spectra,
    )  # fmt: skip
    parts.section("spectra", "Spectra", _resolution(rows), f'<div class="grid">{cards}</div>')


def _resolution(rows: Sequence[Row]) -> str:
    floors = [row.floor / row.singular_values[0] for row in rows if _some(row)]
    if not floors:
        return "Every value is zero: there is nothing to draw."
    floor = typeset(f"{max(floors):.0e}")
    hidden = sum(value < row.floor for row in rows for value in row.singular_values)
    return (
        f"Every value is known to one part in a million down to the resolvable floor, {floor} of the largest "
        f"or better; {hidden:,} values lie below it and are not drawn."
    )


def _some(row: Row) -> bool:
    return bool(row.singular_values[0])


def _energy(parts: Parts, rows: Sequence[Row], rank: int) -> None:
    there = [role for role in roles(rows) if role in AILORA]
    if not there:
        return
    held = _by_stack(
        parts, rows, there,
        lambda role: (f"energy-{role}", f"{AILORA[role].capitalize()} components of {symbol(role)}",
                      "Share of the squared norm that an adapter of rank r would take over."),
        figures.energy, ' data-energy="yes"',
    )  # fmt: skip
    moved = [
        parts.card("motion-layers", f"First step of the adapters, rank {rank}",
                   "How far Adam's first step moves each matrix, for its norm and learning rate.",
                   motion_by_layer(rows, rank)),
        parts.card("motion-ranks", "First step against rank", "Root mean square over the layers.",
                   motion_by_rank(rows), ' data-energy="yes"'),
    ]  # fmt: skip
    parts.section(
        "energy", "Energy against rank",
        "Move the slider: what would the adapters of AILoRA hold at that rank, and how fast would they move? With the "
        "roots of the singular values on both sides, an adapter moves in proportion to them.",
        f'{_slider(rows)}<div class="held">{_boxes(there)}</div><div class="grid">{held}{"".join(moved)}</div>',
    )  # fmt: skip


def _slider(rows: Sequence[Row]) -> str:
    """Over the ranks that all matrices have, at 8 if there is room."""
    common = min((row.cuts.ranks for row in rows), key=len)
    start = max(at for at, rank in enumerate(common) if rank <= 8 and (rank < common[-1] or at == 0))
    return (
        f'<div class="slider"><label for="rank">Rank</label><input id="rank" type="range" min="0" '
        f'max="{max(0, len(common) - 2)}" value="{min(start, max(0, len(common) - 2))}" step="1">'
        '<output id="rank-value" for="rank"></output></div>'
    )


def _boxes(there: Sequence[str]) -> str:
    """What page.js fills in for the rank of the slider; `there`: the roles that were analysed."""
    told = [(role, f"{AILORA[role]} {typeset(symbol(role))} holds (median)") for role in there]
    if {"q", "v"} <= set(there):
        told.append(("motion", "first step of Adam, Q : V"))
    if "v" in there:
        told.append(("survival", f"predicted survival of minor {typeset(symbol('v'))}"))
    boxes = "".join(
        f'<div><span>{text}</span><strong data-held="{key}"></strong><span data-held="{key}-range"></span></div>'
        for key, text in told
    )
    return (
        f'{boxes}<div><span>adapter parameters</span><strong data-held="parameters"></strong>'
        "<span>for W<sup>Q</sup> and W<sup>V</sup> of all layers</span></div>"
    )


def _elements(parts: Parts, rows: Sequence[Row], tuned: Sequence[Mapping[str, Any]]) -> None:
    def cards(at: int | None) -> str:
        suffix = f"-{at}" if at else ""
        return _by_stack(
            parts, rows, roles(rows),
            lambda role: (f"elements-{role}{suffix}", f"Elements of {symbol(role)}",
                          f"Quantiles per {rows[0].unit}; a view of the paper."),
            lambda of, role: figures.elements(of, role, at),
        )  # fmt: skip

    if len(tuned) < 2:
        body = f'<div class="grid">{cards(0 if tuned else None)}</div>'
    else:
        body = "".join(
            f'<div class="grid" data-tuned="{at}"{" hidden" if at else ""}>{cards(at)}</div>'
            for at in range(len(tuned))
        )
    names = "".join(
        f'<span data-tuned="{at}"{" hidden" if at else ""}>{escape(other["name"])}</span>'
        for at, other in enumerate(tuned)
    )
    dotted = f" Dotted: after tuning ({names})." if tuned else ""
    parts.section(
        "elements", "Distribution of the elements",
        f"The paper reads task dependence from how widely the elements of W^Q and W^V spread.{dotted}",
        body,
    )  # fmt: skip


def _heads(parts: Parts, rows: Sequence[Row]) -> None:
    of = [row for row in rows if row.heads]
    cards = [
        _head_cards(parts, of, key, label)
        for key, label in (("effective_rank", "Effective rank"), ("frobenius_norm", "Norm"))
    ]
    if of:
        parts.section(
            "heads", "Heads",
            "With grouped-query attention W^V has fewer heads than W^Q: query head i reads value head "
            "⌊i · (value heads / query heads)⌋.",
            f'<div class="grid">{"".join(cards)}</div>',
        )  # fmt: skip


def _head_cards(parts: Parts, rows: Sequence[Row], key: str, label: str) -> str:
    return _by_stack(
        parts, rows, roles(rows),
        lambda role: (f"heads-{role}-{key}", f"{label} per head, {symbol(role)}", "One cell a head."),
        lambda own, role: figures.heads(own, role, key, label),
    )  # fmt: skip


def _changes(parts: Parts, rows: Sequence[Row], tuned: Sequence[Mapping[str, Any]]) -> None:
    menu = ""
    if len(tuned) > 1:
        options = "".join(f'<option value="{at}">{escape(other["name"])}</option>' for at, other in enumerate(tuned))
        names = [str(other["name"]) for other in tuned]
        all_of_them = change_figures.together(rows, names, "relative_change", "‖ΔW‖ / ‖W‖")
        menu = parts.card(
            "together", "All fine-tunes together", "Relative change; dashes tell them apart.", all_of_them
        )
        menu += f'<div class="choose"><label>Fine-tune <select id="tuned">{options}</select></label></div>'
    blocks = "".join(
        f'<div data-tuned="{at}"{" hidden" if at else ""}>{_change(parts, rows, at)}</div>' for at in range(len(tuned))
    )
    parts.section(
        "changes", "What fine-tuning changed",
        "ΔW = W′ − W. AILoRA assumes that W^Q changes with the task and W^V hardly does; here it can be seen.",
        menu + blocks,
    )  # fmt: skip


def _change(parts: Parts, rows: Sequence[Row], at: int) -> str:
    def over_layers(key: str, title: str) -> Figure:
        return figures.by_layer(rows, change_metric(at, key), title)

    def overlap(part: str) -> Figure:
        def value(row: Row) -> float | None:
            return place.overlap(part) if (place := row.changes[at].placement) else None

        return figures.by_layer(rows, value, f"overlap, {part} r")

    cards = [
        parts.card(f"relative-{at}", "Relative change", "‖ΔW‖_F / ‖W‖_F: comparable between Q and V.",
                   over_layers("relative_change", "‖ΔW‖ / ‖W‖")),
        parts.card(f"scatter-{at}", "Q against V", "A point a layer; above the diagonal Q changed more.",
                   change_figures.q_against_v(rows, at)),
        parts.card(f"norm-{at}", "The paper's view: ‖ΔW‖_F, not normalised",
                   "Alone it misleads: larger matrices and larger weights have larger norms at the same change.",
                   over_layers("delta_norm", "‖ΔW‖_F")),
        parts.card(f"above-{at}", "Directions of ΔW above its noise edge",
                   "0: nothing that noise of this size would not show.",
                   over_layers("delta_above", "singular values above the edge")),
        _by_stack(parts, rows, roles(rows),
                  lambda role: (f"delta-{role}-{at}", f"Spectrum of Δ{symbol(role)}",
                                "Over its own noise edge: above 1 is structure."),
                  lambda of, role: change_figures.spectra(of, role, at)),
        parts.card(f"deciles-{at}", "Where in the original's spectrum",
                   "Share of the change in the directions of each tenth; dashed and dotted: by chance.",
                   change_figures.deciles(rows, at)),
        parts.card(f"top-{at}", "Did the strongest directions stay?",
                   "Overlap of the top r subspaces before and after: 1 unmoved, r/n by chance.", overlap("top")),
        parts.card(f"bottom-{at}", "Did the weakest directions stay?",
                   "Overlap of the bottom r subspaces before and after.", overlap("bottom")),
    ]  # fmt: skip
    name = f"change-{at}"
    return parts.map(name, maps.overview(rows, at), "relative_change") + f'<div class="grid">{"".join(cards)}</div>'


def _ranks(parts: Parts, rows: Sequence[Row], ranks: Mapping[str, Any]) -> None:
    pattern = ranks["rank_pattern"]
    figure = figures.by_layer(rows, lambda row: float(pattern[row.module]), "suggested rank")
    parts.section(
        "ranks", "Suggested ranks",
        f"{escape(ranks['rule'][0].upper() + ranks['rule'][1:])} Basis here: the {escape(ranks['basis'])}; "
        f"{ranks['parameters']:,} of {ranks['budget']:,} parameters spent. <code>ailora-tools init --ranks "
        "ranks.json</code> takes the file beside this page.",
        f'<div class="grid">{parts.card("ranks", "Rank per layer", "At least 1 everywhere.", figure)}</div>',
    )  # fmt: skip


def _terms(parts: Parts) -> None:
    def listed(of: str) -> str:
        return "".join(
            f"<div><dt>{escape(row.label)}</dt><dd><code>{raised(escape(row.formula))}</code></dd><dd>{typeset(row.meaning)}</dd>"
            f'<dd class="source">{escape(row.source)}</dd></div>'
            for row in DEFINITIONS
            if row.of == of
        )

    parts.section(
        "definitions", "Definitions",
        "s are singular values, largest first; W is m × n, k = min(m, n), N = max(m, n).",
        f'<details><summary>Of a matrix</summary><dl class="terms">{listed("matrix")}</dl></details>'
        f'<details><summary>Of a change</summary><dl class="terms">{listed("change")}</dl></details>',
    )  # fmt: skip
