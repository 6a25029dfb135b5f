"""The figures as plotly.js takes them: plain dictionaries, built without plotly's slow Python objects.

A test lets plotly itself validate each of them. Every axis has a title with its unit; layers are in natural order;
colours are safe for colour-blind readers (Okabe and Ito; Cividis) and the page adds those of its theme.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from .rows import AILORA, PARTS, Row, change_metric, of_role, pairs, roles
from .words import matrix, typeset

Figure = dict[str, Any]
COLOURS = defaultdict(lambda: "#808080", {"q": "#2f83c5", "v": "#d9700d", "k": "#009e73", "o": "#b8609a"})
_POINTS = 160  # of a spectrum that are drawn: more cannot be seen
_DEPTH = ("#4c6ef5", "#7a63d6", "#b05cb3", "#dd6079", "#e8833a", "#d9a520")  # seen on white and on black


def line_name(role: str, stack: str = "") -> str:
    """Such as W^Q, or W^V of a stack, as HTML: plotly draws the superscript, and names in it are hostile."""
    return typeset(" ".join(part for part in (matrix(role), stack) if part))


def spectra(rows: Sequence[Row], role: str) -> Figure:
    """All singular values of every layer of one role, with the median noise edge."""
    edge = median(row.metrics["noise_edge"] for row in of_role(rows, role))
    title = f"singular value of {matrix(role)}"
    lines = [
        _line(row, rows, _thin(_resolved(row)), f"{typeset(row.label)}<br>index %{{x}}<br>s = %{{y:.4g}}")
        for row in of_role(rows, role)
    ]
    figure = _with_depth(lines, rows, layout_for("index (1 = largest)", title, log_y=True))
    return _with_level(figure, edge, "noise edge (median)")


def change_spectra(rows: Sequence[Row], role: str, at: int) -> Figure:
    """Singular values of the change over its own noise edge: what lies above 1 is structure."""
    lines = []
    for row in of_role(rows, role):
        edge = row.changes[at].metrics["delta_edge"]
        if edge:
            values = [value / edge for value in row.changes[at].singular_values]
            shown = [value for value in values if value > 1e-6]
            lines.append(_line(row, rows, _thin(shown), f"{typeset(row.label)}<br>index %{{x}}<br>%{{y:.3g}} edges"))
    layout = layout_for("index (1 = largest)", f"singular value of Δ{matrix(role)} / its noise edge", log_y=True)
    return _with_level(_with_depth(lines, rows, layout), 1.0, "noise edge")


def energy(rows: Sequence[Row], role: str) -> Figure:
    """Share of the energy in the r directions that AILoRA gives to the role, against r; the page marks a rank."""
    lines = []
    for row in of_role(rows, role):
        points = list(zip(row.cuts.ranks, row.held, strict=True))
        points = [(rank, short(share)) for rank, share in points if share > 0]
        lines.append(_line(row, rows, points, f"{typeset(row.label)}<br>rank %{{x}}<br>%{{y:.3%}} of the energy"))
    layout = layout_for("rank r", f"energy of the {AILORA[role]} r of {matrix(role)}", log_y=PARTS[role] == "bottom")
    layout["xaxis"] |= {"type": "log", "dtick": "D1" if _longest(rows) < 30 else 1}
    if PARTS[role] == "top":
        layout["yaxis"]["tickformat"] = ".0%"
    return _with_depth(lines, rows, layout)


def _longest(rows: Sequence[Row]) -> int:
    return max(int(min(row.shape)) for row in rows)


def elements(rows: Sequence[Row], role: str, at: int | None = None) -> Figure:
    """Distribution of the elements per layer: 5 to 95 %, quartiles, median; dashed after tuning."""
    chosen = _single(of_role(rows, role))
    layers = [row.layer for row in chosen]
    levels = chosen[0].quantile_levels
    quantile = {level: [row.quantiles[i] for row in chosen] for i, level in enumerate(levels)}
    colour = COLOURS[role]
    data = [
        *_band(layers, quantile[0.05], quantile[0.95], colour, 0.18, "5 to 95 %"),
        *_band(layers, quantile[0.25], quantile[0.75], colour, 0.4, "25 to 75 %"),
        series(layers, quantile[0.5], colour, "median"),
    ]
    if at is not None:
        for level, name in ((0.05, "after: 5, 25, 75, 95 %"), (0.25, ""), (0.75, ""), (0.95, "")):
            i = levels.index(level)
            after = [row.changes[at].quantiles[i] for row in chosen]
            style = {"dash": "dot", "width": 1.5, "color": colour}
            data.append(series(layers, after, colour, name) | {"line": style, "showlegend": bool(name)})
    return {"data": data, "layout": layout_for("layer", f"element of {matrix(role)}", legend=True)}


def by_layer(rows: Sequence[Row], value: Callable[[Row], float | None], title: str, log: bool = False) -> Figure:
    """One number per layer, a line for each role and stack."""
    data = []
    for role in roles(rows):
        for stack in sorted({row.stack for row in of_role(rows, role)}):
            chosen = [row for row in of_role(rows, role) if row.stack == stack]
            name = line_name(role, stack)
            known = [value(row) for row in chosen]
            data.append(series([row.layer for row in chosen], known, COLOURS[role], name, role))
    return {"data": data, "layout": layout_for("layer", title, log_y=log, legend=True, zero=not log)}


def q_against_v(rows: Sequence[Row], at: int) -> Figure:
    """A point per layer: above the diagonal Q changed more, below it V did."""
    both = pairs(rows, change_metric(at, "relative_change"))
    most = 1.08 * max((value for pair in both.values() for value in pair), default=1.0) or 1.0
    names = [typeset(" ".join(part for part in (stack, str(layer)) if part)) for stack, layer in both]
    points = {
        "type": "scatter", "mode": "markers+text", "x": [short(v) for _, v in both.values()],
        "y": [short(q) for q, _ in both.values()], "text": names, "textposition": "top center",
        "marker": {"size": 9, "color": [layer for _, layer in both], "colorscale": _scale(),
                   "line": {"width": 1, "color": "#888"}, "colorbar": _depth_bar()},
        "hovertemplate": "layer %{text}<br>V %{x:.4g}<br>Q %{y:.4g}<extra></extra>", "showlegend": False,
    }  # fmt: skip
    diagonal = {
        "type": "scatter", "mode": "lines", "x": [0, most], "y": [0, most], "hoverinfo": "skip", "showlegend": False,
        "line": {"dash": "dash", "width": 1, "color": "#888"},
    }  # fmt: skip
    layout = layout_for("‖ΔW^V‖ / ‖W^V‖", "‖ΔW^Q‖ / ‖W^Q‖")
    layout["xaxis"] |= {"range": [0, most]}
    layout["yaxis"] |= {"range": [0, most]}
    return {"data": [diagonal, points], "layout": layout}


def deciles(rows: Sequence[Row], at: int) -> Figure:
    """Where in the spectrum of the original the change sits: medians over the layers, with chance."""
    data: list[dict[str, Any]] = []
    names = [f"{10 * part}-{10 * part + 10}" for part in range(10)]
    for role in roles(rows):
        known = [place for row in of_role(rows, role) if (place := row.changes[at].placement)]
        if known:
            shares = [short(median(place.share(tenth) for place in known)) for tenth in range(10)]
            chance = [short(median(place.chance(tenth) for place in known)) for tenth in range(10)]
            data.append({
                "type": "bar", "x": names, "y": shares, "name": line_name(role), "marker": {"color": COLOURS[role]},
                "hovertemplate": "%{x} %<br>%{y:.3%} of the change<extra>" + line_name(role) + "</extra>",
            })  # fmt: skip
            data.append({
                "type": "scatter", "mode": "lines", "x": names, "y": chance, "name": f"chance for {line_name(role)}",
                "line": {"dash": "dash", "width": 1.5, "color": COLOURS[role]}, "hoverinfo": "skip",
            })  # fmt: skip
    layout = layout_for("part of the original's spectrum in %, strongest first", "share of ‖ΔW‖²", legend=True)
    layout["yaxis"]["tickformat"] = ".0%"
    return {"data": data, "layout": layout | {"barmode": "group"}}


def heads(rows: Sequence[Row], role: str, key: str, label: str) -> Figure:
    """A map layer x head of one number."""
    chosen = _single([row for row in of_role(rows, role) if row.heads])
    z = [[short(head[key]) for head in row.heads] for row in chosen]
    count = max(map(len, z))
    data = {
        "type": "heatmap", "x": list(range(count)), "y": [str(row.layer) for row in chosen], "z": z,
        "colorscale": "Cividis", "xgap": 1, "ygap": 1, "colorbar": {"thickness": 12, "outlinewidth": 0},
        "hovertemplate": f"layer %{{y}}, head %{{x}}<br>{label} %{{z:.4g}}<extra></extra>",
    }  # fmt: skip
    layout = layout_for(f"head of {matrix(role)}", "layer", height=max(240, 90 + 16 * len(z)))
    layout["xaxis"]["dtick"] = 1 if count <= 16 else 4
    layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
    return {"data": [data], "layout": layout}


def _single(rows: Sequence[Row]) -> list[Row]:
    """The rows of the first stack: bands over layers need one row a layer."""
    first = min(row.stack for row in rows)
    return [row for row in rows if row.stack == first]


def _resolved(row: Row) -> list[float]:
    floor = row.floor
    return [value for value in row.singular_values if value >= floor and value > 0]


def _thin(values: Sequence[float]) -> list[tuple[int, float]]:
    """(index from 1, value) at no more than `_POINTS` places, dense at both ends, where spectra bend."""
    count = len(values)
    if count <= _POINTS:
        return [(at + 1, short(value)) for at, value in enumerate(values)]
    steps = [(1 - math.cos(math.pi * step / (_POINTS - 1))) / 2 for step in range(_POINTS)]
    places = sorted({round(step * (count - 1)) for step in steps})
    return [(at + 1, short(values[at])) for at in places]


def _line(row: Row, rows: Sequence[Row], points: Sequence[tuple[int, float]], hover: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": [x for x, _ in points], "y": [y for _, y in points],
        "line": {"width": 1.3, "color": _depth_colour(row, rows)}, "showlegend": False, "name": typeset(row.label),
        "hovertemplate": f"{hover}<extra></extra>",
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


def _with_depth(lines: list[dict[str, Any]], rows: Sequence[Row], layout: dict[str, Any]) -> Figure:
    """A colour bar for the layers, carried by a point that is not drawn."""
    layers = [row.layer for row in rows]
    key = {
        "type": "scatter", "mode": "markers", "x": [None], "y": [None], "showlegend": False, "hoverinfo": "skip",
        "marker": {"color": [0], "cmin": min(layers), "cmax": max(max(layers), min(layers) + 1),
                   "colorscale": _scale(), "showscale": True, "colorbar": _depth_bar()},
    }  # fmt: skip
    return {"data": [*lines, key], "layout": layout}


def _scale() -> list[list[float | str]]:
    return [[at / (len(_DEPTH) - 1), colour] for at, colour in enumerate(_DEPTH)]


def _depth_bar() -> dict[str, Any]:
    return {"title": {"text": "layer", "side": "right"}, "thickness": 10, "outlinewidth": 0, "tickformat": "d"}


def _with_level(figure: Figure, level: float, name: str) -> Figure:
    """A dashed horizontal line with its name."""
    figure["layout"]["shapes"] = [{
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level,
        "line": {"dash": "dash", "width": 1.5, "color": "#888"}, "name": name,
        "label": {"text": name, "textposition": "end", "font": {"size": 11}},
    }]  # fmt: skip
    return figure


def series(
    x: Sequence[int], values: Sequence[float | None], colour: str, name: str, role: str = "q", unit: str = "layer"
) -> dict[str, Any]:
    """A line with the marks of its role, over layers or another `unit`; gaps where a value is None."""
    symbol = {"q": "circle", "v": "diamond", "k": "square", "o": "x"}.get(role, "triangle-up")
    return {
        "type": "scatter", "mode": "lines+markers" if len(x) < 100 else "lines", "x": list(x),
        "y": [None if value is None else short(value) for value in values], "name": name,
        "line": {"color": colour, "width": 2}, "marker": {"symbol": symbol, "size": 7},
        "hovertemplate": unit + " %{x}<br>%{y:.4g}<extra>" + name + "</extra>",
    }  # fmt: skip


def _band(
    layers: Sequence[int], low: Sequence[float], high: Sequence[float], colour: str, opacity: float, name: str
) -> list[dict[str, Any]]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return [{
        "type": "scatter", "mode": "lines", "x": [*layers, *reversed(layers)],
        "y": [short(value) for value in (*high, *reversed(low))], "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},{opacity})", "line": {"width": 0}, "name": name, "hoverinfo": "skip",
    }]  # fmt: skip


def layout_for(
    x: str, y: str, *, height: int = 360, log_y: bool = False, legend: bool = False, zero: bool = False
) -> dict[str, Any]:
    """Titles, sizes and scales that all figures share; the page adds the colours of its theme."""
    layout: dict[str, Any] = {
        "height": height, "margin": {"l": 64, "r": 16, "t": 12, "b": 48}, "hovermode": "closest",
        "xaxis": {"title": {"text": typeset(x)}, "automargin": True}, "showlegend": legend,
        "yaxis": {"title": {"text": typeset(y)}, "automargin": True},
    }  # fmt: skip
    if log_y:
        layout["yaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 1}
    if zero:
        layout["yaxis"]["rangemode"] = "tozero"
    if legend:
        layout["legend"] = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
        layout["margin"]["t"] = 40
    return layout


def short(value: float) -> float:
    """Five significant digits: more cannot be seen."""
    return float(f"{value:.5g}")
