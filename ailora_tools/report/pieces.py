"""Pieces of the report for a notebook: the findings with a map, as HTML that needs no script, and single figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..errors import OptionError
from ..methods import symbol
from ..metrics.definitions import BY_KEY
from . import sections
from .body import Parts
from .finding import halves
from .rows import Row, of_stack, read_rows, roles, stacks
from .words import number, typeset

Document = Mapping[str, Any]
_FINDINGS = 6
_METRIC, _CHANGED = "effective_rank_share", "relative_change"  # what the map shows of a model, and of a fine-tune
_CIVIDIS = ("#00224e", "#2b446e", "#575d6d", "#807d78", "#a59c74", "#d2c060", "#fee838")
_WIDE, _TALL, _NAMES = 720, 26, 150  # pixels: all cells of a line, a line, and its name


def digest(document: Document, report: str) -> str:
    """The first findings and a map layer x role, as HTML; `report` is where the whole page lies."""
    names = [document["model"]["name"], *(other["name"] for other in document["against"])]
    # What was looked for and not seen comes last.
    told = sorted(document["findings"], key=lambda finding: finding.get("kind") == "none")
    found = [f"<li><b>{typeset(headline)}</b> {typeset(rest)}</li>" for headline, rest in map(halves, told)]
    more = f" {len(found) - _FINDINGS} more findings in the report." if found[_FINDINGS:] else ""
    return (
        f"<div><p><b>{escape(' against '.join(names))}</b>, {len(document['matrices'])} matrices</p>"
        f"<ul>{''.join(found[:_FINDINGS])}</ul>{_map(document)}"
        f"<p>Report: <code>{escape(report)}</code>.{more}</p></div>"
    )


def figure_names(document: Document) -> list[str]:
    """Names of the figures of the report, in its order."""
    return list(_parts(document).figures)


def figure(document: Document, name: str, metric: str | None = None) -> Any:
    """One figure as a plotly.graph_objects.Figure; of a map that of `metric`. OptionError for names not there."""
    parts = _parts(document)
    if name not in parts.figures:
        raise OptionError(f"There is no figure {name!r} in this analysis.", f"There are {', '.join(parts.figures)}.")
    drawn = parts.figures[name]
    overview = parts.overviews.get(name.removeprefix("map-")) if name.startswith("map-") else None
    if overview is not None:
        drawn = _coloured(overview, metric)
    elif metric is not None:
        raise OptionError(f"Figure {name!r} is no map, and so takes no metric.", "Leave `metric` out.")
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]

    return Figure(data=drawn["data"], layout={**drawn["layout"], "template": "plotly_white"})


def _parts(document: Document) -> Parts:
    return sections.build(document, read_rows(document))


def _coloured(overview: Mapping[str, Any], metric: str | None) -> dict[str, Any]:
    """The map with the values of one metric; the first that it offers if none is named."""
    maps = overview["maps"]
    if metric is not None and metric not in maps:
        raise OptionError(f"There is no metric {metric!r} in this map.", f"There are {', '.join(maps)}.")
    chosen = maps[metric or next(iter(maps))]
    (trace,) = overview["figure"]["data"]
    low, high = chosen["range"]
    bar = {**trace["colorbar"], "tickvals": chosen["ticks"]["values"], "ticktext": chosen["ticks"]["texts"]}
    shown = {"z": chosen["z"], "text": chosen["text"], "zmin": low, "zmax": high, "colorbar": bar,
             "hovertemplate": "%{y}, layer %{x}<br>%{text}<extra></extra>"}  # fmt: skip
    layout = {**overview["figure"]["layout"], "title": {"text": chosen["label"]}}
    layout["margin"] = {**layout["margin"], "t": 48}
    return {"data": [{**trace, **shown}], "layout": layout}


def _map(document: Document) -> str:
    """An SVG with a cell for each matrix; of a fine-tune how much it changed, else the effective rank."""
    rows = read_rows(document)
    key = _CHANGED if document["against"] else _METRIC
    values = {(row.stack, row.role, row.layer): _value(row, key) for row in rows}
    known = sorted(value for value in values.values() if value is not None)
    if not known:
        return ""
    layers = sorted({row.layer for row in rows})
    lines = [(stack, role) for stack in stacks(rows) for role in roles(of_stack(rows, stack))]
    wide = min(48.0, _WIDE / len(layers))
    cells = "".join(
        _cell(_NAMES + wide * layers.index(layer), _TALL * lines.index((stack, role)), wide, value, known, layer)
        for (stack, role, layer), value in values.items()
    )
    names = "".join(
        _text(0, _TALL * at + 17, f"{symbol(role)} {stack}".strip()) for at, (stack, role) in enumerate(lines)
    )
    ends = _axis(layers, wide, _TALL * len(lines) + 14)
    width, height = _NAMES + wide * len(layers), _TALL * len(lines) + 20
    return (
        f"<p>{escape(BY_KEY[key].label)} by layer, from {number(known[0])} (dark) to {number(known[-1])} (light):</p>"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" role="img" '
        f'aria-label="{escape(BY_KEY[key].label)} by layer">{names}{cells}{ends}</svg>'
    )


def _value(row: Row, key: str) -> float | None:
    metrics = row.changes[0].metrics if key == _CHANGED else row.metrics
    value: float | None = metrics[key]
    return value


def _cell(x: float, y: int, wide: float, value: float | None, known: Sequence[float], layer: int) -> str:
    share = 0.0 if value is None or known[-1] == known[0] else (value - known[0]) / (known[-1] - known[0])
    colour = "none" if value is None else _CIVIDIS[round(share * (len(_CIVIDIS) - 1))]
    told = "not defined" if value is None else number(value)
    gap = 1 if wide > 4 else 0
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{wide - gap:.1f}" height="{_TALL - 2}" fill="{colour}">'
        f"<title>layer {layer}: {told}</title></rect>"
    )


def _axis(layers: Sequence[int], wide: float, y: int) -> str:
    """Numbers below the first, the last, and about every fortieth pixel between."""
    step = max(1, round(40 / wide))
    return "".join(_text(_NAMES + wide * at + 2, y, str(layer)) for at, layer in enumerate(layers) if at % step == 0)


def _text(x: float, y: int, text: str) -> str:
    return (
        f'<text x="{x:.0f}" y="{y}" font-size="13" font-family="sans-serif" fill="currentColor">{escape(text)}</text>'
    )
