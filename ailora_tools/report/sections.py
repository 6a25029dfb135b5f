"""The sections of the report, top to bottom: HTML with places for figures, and the figures that go there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ..metrics.definitions import BY_KEY, DEFINITIONS
from . import figures, maps
from .body import Parts
from .motions import motion_by_layer, motion_by_rank
from .rows import AILORA, Row, change_metric, roles
from .words import matrix, number, typeset

Document = Mapping[str, Any]
_FIRST = 6  # findings that are open at once; the rest unfolds
_COLUMNS = (
    "effective_rank_share", "stable_rank_share", "rank_90", "outliers", "outlier_energy", "frobenius_norm",
    "spectral_norm", "condition", "alpha", "alpha_tail", "spectrum_snr",
)  # fmt: skip
_CHANGE_COLUMNS = (
    "relative_change",
    "delta_norm",
    "delta_above",
    "delta_above_energy",
    "rounding_above",
    "delta_rank_90",
)
_HELP = (
    "<details><summary>How to read this page</summary><p>A matrix stretches some input directions more than others; "
    "its singular values are these factors, largest first. A steep curve means few directions matter, a flat one that "
    "all do. The noise edge is what a matrix of random numbers with the same bulk and shape would reach: only values "
    "above it are structure. Where Q and V are compared, layers are paired and a sign test says how likely such an "
    "uneven split would be by chance (p below 0.05 counts as a difference; with many metrics some will be so by "
    "chance). No figure smooths or drops layers; hover, or tap, for the numbers.</p></details>"
)


def build(document: Document, rows: Sequence[Row]) -> Parts:
    """All sections of one document, whose matrices are `rows`."""
    parts = Parts()
    _findings(parts, document)
    if document["against"]:
        _changes(parts, rows, document["against"])
    parts.section(
        "overview", "Layers at a glance",
        "One cell a matrix, in the order of the model. Colours run from the 2nd to the 98th percentile, so that one "
        "outlier cannot flatten the rest. Click a cell for its row in the table.",
        parts.map("weights", maps.overview(rows), "effective_rank_share"),
    )  # fmt: skip
    _spectra(parts, rows)
    _energy(parts, rows, document["settings"]["rank"])
    _elements(parts, rows, document["against"])
    _heads(parts, rows)
    if document.get("ranks"):
        _ranks(parts, rows, document["ranks"])
    _table(parts, rows, document)
    _terms(parts)
    return parts


def _findings(parts: Parts, document: Document) -> None:
    items = [f"<li>{typeset(finding['text'])}</li>" for finding in document["findings"]]
    notes = [f'<p class="note">{typeset(text)}</p>' for text in document["notices"]]
    notes += [
        f'<p class="note">Left out: {escape(row["tensor"])}: {escape(row["reason"])}</p>' for row in document["skipped"]
    ]
    body = f'{"".join(notes)}<ul class="findings">{"".join(items[:_FIRST])}</ul>'
    if items[_FIRST:]:
        body += (
            f"<details><summary>{len(items) - _FIRST} more findings</summary>"
            f'<ul class="findings more">{"".join(items[_FIRST:])}</ul></details>'
        )
    parts.section(
        "findings", "Findings",
        "Sentences computed from the numbers below. W^Q decides where a head looks, W^V what it carries along; the "
        "singular values of each say how many directions it uses and how strongly. AILoRA starts the adapter of W^Q "
        "from the strongest directions and that of W^V from the weakest.",
        body + _HELP,
    )  # fmt: skip


def _spectra(parts: Parts, rows: Sequence[Row]) -> None:
    cards = [
        parts.card(f"spectra-{role}", f"All singular values of {matrix(role)}",
                   "One line a layer, from blue for the first to yellow for the last.", figures.spectra(rows, role))
        for role in roles(rows)
    ]  # fmt: skip
    parts.section("spectra", "Spectra", _resolution(rows), f'<div class="grid">{"".join(cards)}</div>')


def _resolution(rows: Sequence[Row]) -> str:
    floors = [row.floor / row.singular_values[0] for row in rows if _some(row)]
    if not floors:
        return "Every value is zero: there is nothing to draw."
    hidden = sum(value < row.floor for row in rows for value in row.singular_values)
    return (
        f"Every value is known to one part in a million down to the resolvable floor, {max(floors):.0e} of the largest "
        f"or better; {hidden:,} values lie below it and are not drawn."
    )


def _some(row: Row) -> bool:
    return bool(row.singular_values[0])


def _energy(parts: Parts, rows: Sequence[Row], rank: int) -> None:
    there = [role for role in roles(rows) if role in AILORA]
    if not there:
        return
    cards = [
        parts.card(f"energy-{role}", f"{AILORA[role].capitalize()} components of {matrix(role)}",
                   "Share of the squared norm that an adapter of rank r would take over.",
                   figures.energy(rows, role), ' data-energy="yes"')
        for role in there
    ]  # fmt: skip
    cards += [
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
        f'{_slider(rows)}<div class="held">{_boxes(there)}</div><div class="grid">{"".join(cards)}</div>',
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
    told = [(role, f"{AILORA[role]} {typeset(matrix(role))} holds (median)") for role in there]
    if {"q", "v"} <= set(there):
        told.append(("motion", "first step of Adam, Q : V"))
    if "v" in there:
        told.append(("survival", f"predicted survival of minor {typeset(matrix('v'))}"))
    boxes = "".join(
        f'<div><span>{text}</span><strong data-held="{key}"></strong><span data-held="{key}-range"></span></div>'
        for key, text in told
    )
    return (
        f'{boxes}<div><span>adapter parameters</span><strong data-held="parameters"></strong>'
        "<span>for W<sup>Q</sup> and W<sup>V</sup> of all layers</span></div>"
    )


def _elements(parts: Parts, rows: Sequence[Row], tuned: Sequence[Mapping[str, Any]]) -> None:
    at = 0 if tuned else None
    cards = [
        parts.card(f"elements-{role}", f"Elements of {matrix(role)}", "Quantiles per layer; a view of the paper.",
                   figures.elements(rows, role, at))
        for role in roles(rows)
    ]  # fmt: skip
    dotted = f" Dotted: after tuning ({escape(tuned[0]['name'])})." if tuned else ""
    parts.section(
        "elements", "Distribution of the elements",
        f"The paper reads task dependence from how widely the elements of W^Q and W^V spread.{dotted}",
        f'<div class="grid">{"".join(cards)}</div>',
    )  # fmt: skip


def _heads(parts: Parts, rows: Sequence[Row]) -> None:
    there = [role for role in roles(rows) if any(row.role == role and row.heads for row in rows)]
    cards = [
        parts.card(f"heads-{role}-{key}", f"{label}, {matrix(role)}", "One cell a head.",
                   figures.heads(rows, role, key, label))
        for role in there
        for key, label in (("effective_rank", "Effective rank per head"), ("frobenius_norm", "Norm per head"))
    ]  # fmt: skip
    if cards:
        parts.section(
            "heads", "Heads",
            "With grouped-query attention W^V has fewer heads than W^Q: query head i reads value head "
            "⌊i · (value heads / query heads)⌋.",
            f'<div class="grid">{"".join(cards)}</div>',
        )  # fmt: skip


def _changes(parts: Parts, rows: Sequence[Row], tuned: Sequence[Mapping[str, Any]]) -> None:
    menu = ""
    if len(tuned) > 1:
        options = "".join(f'<option value="{at}">{escape(other["name"])}</option>' for at, other in enumerate(tuned))
        menu = f'<div class="choose"><label>Fine-tune <select id="tuned">{options}</select></label></div>'
    blocks = "".join(
        f'<div data-tuned="{at}"{" hidden" if at else ""}>{_change(parts, rows, at)}</div>' for at in range(len(tuned))
    )
    parts.section(
        "changes", "What fine-tuning changed",
        "ΔW = W′ − W. AILoRA assumes that W^Q changes with the task and W^V hardly does; here it can be seen.",
        menu + blocks,
    )  # fmt: skip


def _change(parts: Parts, rows: Sequence[Row], at: int) -> str:
    def metric(key: str) -> Callable[[Row], float | None]:
        return change_metric(at, key)

    def overlap(part: str) -> Callable[[Row], float | None]:
        return lambda row: place.overlap(part) if (place := row.changes[at].placement) else None

    cards = [
        parts.card(f"relative-{at}", "Relative change", "‖ΔW‖_F / ‖W‖_F: comparable between Q and V.",
                   figures.by_layer(rows, metric("relative_change"), "‖ΔW‖ / ‖W‖")),
        parts.card(f"scatter-{at}", "Q against V", "A point a layer; above the diagonal Q changed more.",
                   figures.q_against_v(rows, at)),
        parts.card(f"norm-{at}", "The paper's view: ‖ΔW‖_F, not normalised",
                   "Alone it misleads: larger matrices and larger weights have larger norms at the same change.",
                   figures.by_layer(rows, metric("delta_norm"), "‖ΔW‖_F")),
        parts.card(f"above-{at}", "Directions of ΔW above its noise edge",
                   "0: nothing that noise of this size would not show.",
                   figures.by_layer(rows, metric("delta_above"), "singular values above the edge")),
        *(
            parts.card(f"delta-{role}-{at}", f"Spectrum of Δ{matrix(role)}",
                       "Over its own noise edge: above 1 is structure.", figures.change_spectra(rows, role, at))
            for role in roles(rows)
        ),
        parts.card(f"deciles-{at}", "Where in the original's spectrum",
                   "Share of the change in the directions of each tenth; dashed: by chance.",
                   figures.deciles(rows, at)),
        parts.card(f"top-{at}", "Did the strongest directions stay?",
                   "Overlap of the top r subspaces before and after: 1 unmoved, r/n by chance.",
                   figures.by_layer(rows, overlap("top"), "overlap, top r")),
        parts.card(f"bottom-{at}", "Did the weakest directions stay?",
                   "Overlap of the bottom r subspaces before and after.",
                   figures.by_layer(rows, overlap("bottom"), "overlap, bottom r")),
    ]  # fmt: skip
    name = f"change-{at}"
    return parts.map(name, maps.overview(rows, at), "relative_change") + (
        f'<div class="grid" style="margin-top:1rem">{"".join(cards)}</div>'
    )


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


def _table(parts: Parts, rows: Sequence[Row], document: Document) -> None:
    tuned = document["against"]
    heads = ['<th scope="col"><button type="button">matrix</button></th>']
    heads += [_head(key, "") for key in _COLUMNS]
    for other in tuned:
        heads += [_head(key, f" ({other['name']})" if len(tuned) > 1 else "") for key in _CHANGE_COLUMNS]
    body = "".join(_row(at, row, len(tuned)) for at, row in enumerate(rows))
    total = len(rows) + len(document["skipped"])
    parts.section(
        "table", "All matrices",
        f"{len(rows)} of {total} matrices. Sort by any column; hover its title for the definition. The CSV holds more.",
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of all matrices"><table><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>",
    )  # fmt: skip


def _head(key: str, suffix: str) -> str:
    row = BY_KEY[key]
    title = escape(f"{row.formula}. {row.meaning}")
    return f'<th scope="col"><button type="button" title="{title}">{escape(row.label + suffix)}</button></th>'


def _row(at: int, row: Row, tuned: int) -> str:
    values = [row.metrics[key] for key in _COLUMNS]
    values += [row.changes[i].metrics[key] for i in range(tuned) for key in _CHANGE_COLUMNS]
    cells = "".join(
        f'<td data-value="{"" if value is None else value}">{"–" if value is None else number(value)}</td>'
        for value in values
    )
    line = figures.line_name(row.role, row.stack)
    name = f'<span class="{row.role}">{line}</span> {row.layer}'
    return (
        f'<tr data-at="{escape(line)}|{row.layer}"><td data-value="{at}" title="{escape(row.tensor)}">{name}</td>'
        f"{cells}</tr>"
    )


def _terms(parts: Parts) -> None:
    def listed(of: str) -> str:
        return "".join(
            f"<div><dt>{escape(row.label)}</dt><dd><code>{escape(row.formula)}</code></dd><dd>{escape(row.meaning)}</dd>"
            f'<dd class="source">{escape(row.source)}</dd></div>'
            for row in DEFINITIONS
            if row.of == of
        )

    parts.section(
        "definitions", "Definitions",
        "s are singular values, largest first; W is m × n, k = min(m, n), N = max(m, n).",
        f'<details open><summary>Of a matrix</summary><dl class="terms">{listed("matrix")}</dl></details>'
        f'<details><summary>Of a change</summary><dl class="terms">{listed("change")}</dl></details>',
    )  # fmt: skip
