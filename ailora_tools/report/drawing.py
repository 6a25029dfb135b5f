"""What all figures share: layouts, lines, the colours of roles, layers and stacks; plain dictionaries for plotly.js.

A test lets plotly itself validate each figure. Every axis has a title with its unit; layers are in natural order and
have whole numbers; colours are safe for colour-blind readers (Okabe and Ito; Cividis), and the page adds its theme's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..methods import Q_AND_V_FIRST, symbol
from .axes import log_ticks, whole_step
from .rows import Row
from .words import typeset

Figure = dict[str, Any]
_COLOURS = {
    "q": "#2f83c5", "v": "#d9700d", "k": "#009e73", "o": "#b8609a", "gate": "#8c6d1f", "up": "#5b6ee1",
    "down": "#c2453d",
}  # fmt: skip
_MORE = ("#3f8f8f", "#7a7a7a")  # of roles in a model's own words
_SYMBOLS = ("circle", "diamond", "square", "x", "triangle-up", "star", "cross", "pentagon", "hexagon")
_DASHES = ("solid", "dash", "dot", "dashdot")  # of the first, second, ... stack
_POINTS = 160  # of a spectrum that are drawn: more cannot be seen
_DEPTH = ("#4c6ef5", "#7a63d6", "#b05cb3", "#dd6079", "#e8833a", "#d9a520")  # seen on white and on black
_CROWDED = 40  # lines: from here on thin ones


def place_of(role: str) -> int:
    """Of a role among all, for colours and marks: roles in a model's own words have one by their name."""
    return Q_AND_V_FIRST.index(role) if role in Q_AND_V_FIRST else len(Q_AND_V_FIRST) + sum(map(ord, role)) % len(_MORE)


def colour(role: str) -> str:
    """The colour of a role in every figure."""
    return _COLOURS.get(role) or _MORE[place_of(role) % len(_MORE)]


def line_name(role: str, stack: str = "") -> str:
    """Such as W^Q, or W^V of a stack, as HTML: plotly draws the superscript, and names in it are hostile."""
    return typeset(" ".join(part for part in (symbol(role), stack) if part))


def line(row: Row, rows: Sequence[Row], points: Sequence[tuple[int, float]], hover: str) -> dict[str, Any]:
    """One layer's line, in the colour of its depth; `meta` lets the page light it."""
    width = 1.0 if len(rows) > _CROWDED else 1.4
    return {
        "type": "scatter", "mode": "lines", "x": [x for x, _ in points], "y": [y for _, y in points],
        "line": {"width": width, "color": _depth_colour(row, rows)}, "showlegend": False, "name": typeset(row.label),
        "meta": {"layer": row.layer, "role": row.role, "stack": row.stack}, "hovertemplate": f"{hover}<extra></extra>",
    }  # fmt: skip


def _depth_colour(row: Row, rows: Sequence[Row]) -> str:
    """Blue for the first layer, over violet and red to yellow for the last."""
    layers = [other.layer for other in rows]
    share = (row.layer - min(layers)) / max(1, max(layers) - min(layers))
    place = share * (len(_DEPTH) - 1)
    low = min(int(place), len(_DEPTH) - 2)
    ends = [[int(_DEPTH[at][i : i + 2], 16) for i in (1, 3, 5)] for at in (low, low + 1)]
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True)]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def with_depth(lines: list[dict[str, Any]], rows: Sequence[Row], layout: dict[str, Any]) -> Figure:
    """A colour bar for the layers, carried by a point that is not drawn; none for a single layer."""
    layers = sorted({row.layer for row in rows})
    if len(layers) < 2:
        return {"data": lines, "layout": layout}
    key = {
        "type": "scatter", "mode": "markers", "x": [None], "y": [None], "showlegend": False, "hoverinfo": "skip",
        "marker": {"color": [0], "cmin": layers[0], "cmax": layers[-1], "colorscale": depth_scale(),
                   "showscale": True, "colorbar": depth_bar(layers, rows[0].unit)},
    }  # fmt: skip
    return {"data": [*lines, key], "layout": layout}


def depth_scale() -> list[list[float | str]]:
    """The colours of the layers as plotly takes them."""
    return [[at / (len(_DEPTH) - 1), shade] for at, shade in enumerate(_DEPTH)]


def depth_bar(layers: Sequence[int], unit: str) -> dict[str, Any]:
    """With whole numbers, first and last among them."""
    step = whole_step(max(layers) - min(layers), 6)
    ticks = [*range(min(layers), max(layers) - step // 2, step), max(layers)]
    return {
        "title": {"text": unit, "side": "right", "font": {"size": 12}}, "thickness": 10, "outlinewidth": 0,
        "tickvals": ticks, "ticktext": [str(tick) for tick in ticks],
    }  # fmt: skip


def with_level(figure: Figure, level: float, name: str) -> Figure:
    """A dashed horizontal line with its name."""
    figure["layout"]["shapes"] = [{
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level,
        "line": {"dash": "dash", "width": 1.5, "color": "#888"}, "name": name,
        "label": {"text": name, "textposition": "end", "font": {"size": 11}},
    }]  # fmt: skip
    return figure


def thin(values: Sequence[float]) -> list[tuple[int, float]]:
    """(index from 1, value) at no more than `_POINTS` places, dense at both ends, where spectra bend."""
    count = len(values)
    if count <= _POINTS:
        return [(at + 1, short(value)) for at, value in enumerate(values)]
    steps = [(1 - math.cos(math.pi * step / (_POINTS - 1))) / 2 for step in range(_POINTS)]
    places = sorted({round(step * (count - 1)) for step in steps})
    return [(at + 1, short(values[at])) for at in places]


def series(
    x: Sequence[int], values: Sequence[float | None], role: str, name: str, unit: str = "layer", stack: int = 0
) -> dict[str, Any]:
    """A line in the colour and marks of its role and the dashes of stack number `stack`; gaps where a value is None."""
    return {
        "type": "scatter", "mode": "lines+markers" if len(x) < 60 else "lines", "x": list(x),
        "y": [None if value is None else short(value) for value in values], "name": name,
        "line": {"color": colour(role), "width": 2, "dash": _DASHES[stack % len(_DASHES)]},
        "marker": {"symbol": _SYMBOLS[place_of(role) % len(_SYMBOLS)], "size": 7, "color": colour(role)},
        "hovertemplate": unit + " %{x}<br>%{y:.4g}<extra>" + name + "</extra>",
    }  # fmt: skip


def band(
    x: Sequence[int], low: Sequence[float], high: Sequence[float], shade: str, opacity: float, name: str
) -> dict[str, Any]:
    """The area between two lines over layers."""
    red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
    return {
        "type": "scatter", "mode": "lines", "x": [*x, *reversed(x)],
        "y": [short(value) for value in (*high, *reversed(low))], "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},{opacity})", "line": {"width": 0, "color": shade}, "name": name,
        "hoverinfo": "skip",
    }  # fmt: skip


def layout_for(
    x: str, y: str, *, height: int = 360, log_y: bool = False, legend: bool = False, zero: bool = False
) -> dict[str, Any]:
    """Titles, sizes and scales that all figures share; the page adds the colours of its theme."""
    layout: dict[str, Any] = {
        "height": height, "margin": {"l": 68, "r": 16, "t": 14, "b": 50}, "hovermode": "closest",
        "xaxis": {"title": {"text": typeset(x), "standoff": 8}, "automargin": True}, "showlegend": legend,
        "yaxis": {"title": {"text": typeset(y), "standoff": 8}, "automargin": True},
    }  # fmt: skip
    if log_y:
        layout["yaxis"] |= {"type": "log"}
    if zero:
        layout["yaxis"]["rangemode"] = "tozero"
    if legend:
        layout["legend"] = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
        layout["margin"]["t"] = 44
    return layout


def over_layers(layout: dict[str, Any], layers: Iterable[int]) -> dict[str, Any]:
    """An x axis of whole layers with half a layer of room; `meta` lets the page light one of them."""
    known = sorted(set(layers))
    layout["xaxis"] |= {
        "dtick": whole_step(max(known) - min(known), 8), "range": [min(known) - 0.5, max(known) + 0.5],
    }  # fmt: skip
    return layout | {"meta": {"layers": "x"}}


def settled(figure: Figure) -> Figure:
    """Log axes with numbers on them, for the values that are there."""
    for axis, name in (("xaxis", "x"), ("yaxis", "y")):
        if figure["layout"][axis].get("type") == "log":
            values = [value for trace in figure["data"] for value in trace.get(name, ()) if value]
            ends = figure["layout"][axis].get("range")
            figure["layout"][axis] |= log_ticks([10**end for end in ends] if ends else values)
    return figure


def aligned(figures: Sequence[Figure]) -> Sequence[Figure]:
    """The same y axis for figures that stand side by side, one a stack."""
    values = [value for figure in figures for trace in figure["data"] for value in trace.get("y", ()) if value]
    values += [shape["y0"] for figure in figures for shape in figure["layout"].get("shapes", ())]
    if len(figures) > 1 and values and figures[0]["layout"]["yaxis"].get("type") != "category":
        log = figures[0]["layout"]["yaxis"].get("type") == "log"
        ends = [math.log10(end) if log else end for end in (min(values), max(values))]
        room = 0.04 * (ends[1] - ends[0]) or 0.1
        for figure in figures:
            figure["layout"]["yaxis"]["range"] = [short(ends[0] - room), short(ends[1] + room)]
    return figures


def short(value: float) -> float:
    """Five significant digits: more cannot be seen."""
    return float(f"{value:.5g}")
