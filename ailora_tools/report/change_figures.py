"""The figures of what fine-tuning changed: of fine-tune number `at`, or of all of them beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from ..methods import symbol
from .drawing import (
    Figure,
    colour,
    depth_bar,
    depth_scale,
    layout_for,
    line,
    line_name,
    over_layers,
    series,
    short,
    thin,
    with_depth,
    with_level,
)
from .rows import Row, change_metric, of_role, of_stack, pairs, roles, stacks
from .words import typeset

_NAMED = 14  # points of a scatter: more names would lie on each other


def spectra(rows: Sequence[Row], role: str, at: int) -> Figure:
    """Singular values of the change over its own noise edge: what lies above 1 is structure."""
    lines, chosen = [], of_role(rows, role)
    for row in chosen:
        edge = row.changes[at].metrics["delta_edge"]
        if edge:
            values = [value / edge for value in row.changes[at].singular_values]
            shown = [value for value in values if value > 1e-6]
            lines.append(line(row, chosen, thin(shown), f"{typeset(row.label)}<br>index %{{x}}<br>%{{y:.3g}} edges"))
    layout = layout_for("index (1 = largest)", f"singular value of Δ{symbol(role)} / its noise edge", log_y=True)
    return with_level(with_depth(lines, chosen, layout), 1.0, "noise edge")


def q_against_v(rows: Sequence[Row], at: int) -> Figure:
    """A point per layer: above the diagonal Q changed more, below it V did. A mark for each stack."""
    both = pairs(rows, change_metric(at, "relative_change"))
    values = [value for pair in both.values() for value in pair] or [0.0, 1.0]
    room = 0.12 * (max(values) - min(values)) or max(values) or 1.0
    ends = [max(0.0, min(values) - room), max(values) + room]
    layers = sorted({layer for _, layer in both}) or [0]
    data: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip", "showlegend": False,
        "line": {"dash": "dash", "width": 1, "color": "#888"}, "name": "as much",
    }]  # fmt: skip
    symbols = ("circle", "square", "diamond", "triangle-up", "x")
    shown = [stack for stack in stacks(rows) if any(own == stack for own, _ in both)]
    for number, stack in enumerate(shown):
        of = {layer: pair for (own, layer), pair in both.items() if own == stack}
        data.append({
            "type": "scatter", "mode": "markers+text" if len(both) <= _NAMED else "markers", "name": typeset(stack),
            "x": [short(v) for _, v in of.values()], "y": [short(q) for q, _ in of.values()],
            "text": [str(layer) for layer in of], "textposition": "top center", "showlegend": len(shown) > 1,
            "marker": {"size": 9, "color": list(of), "colorscale": depth_scale(), "symbol": symbols[number % 5],
                       "cmin": layers[0], "cmax": max(layers[-1], layers[0] + 1), "line": {"width": 1, "color": "#888"},
                       **({"colorbar": depth_bar(layers, rows[0].unit)} if number == 0 and len(layers) > 1 else {})},
            "hovertemplate": f"{rows[0].unit} %{{text}} {typeset(stack)}<br>V %{{x:.4g}}<br>Q %{{y:.4g}}"
                             "<extra></extra>",
        })  # fmt: skip
    layout = layout_for("‖ΔW^V‖ / ‖W^V‖", "‖ΔW^Q‖ / ‖W^Q‖", legend=len(shown) > 1)
    layout["xaxis"] |= {"range": ends}
    layout["yaxis"] |= {"range": ends}
    return {"data": data, "layout": layout}


def deciles(rows: Sequence[Row], at: int) -> Figure:
    """Where in the spectrum of the original the change sits: medians over the layers, with chance."""
    data: list[dict[str, Any]] = []
    names = [f"{10 * part}-{10 * part + 10}" for part in range(10)]
    for number, role in enumerate(roles(rows)):
        known = [place for row in of_role(rows, role) if (place := row.changes[at].placement)]
        if known:
            shares = [short(median(place.share(tenth) for place in known)) for tenth in range(10)]
            chance = [short(median(place.chance(tenth) for place in known)) for tenth in range(10)]
            data.append({
                "type": "bar", "x": names, "y": shares, "name": line_name(role), "marker": {"color": colour(role)},
                "hovertemplate": "%{x} %<br>%{y:.3%} of the change<extra>" + line_name(role) + "</extra>",
            })  # fmt: skip
            data.append({
                "type": "scatter", "mode": "lines", "x": names, "y": chance, "name": f"chance, {line_name(role)}",
                "line": {"dash": ("dash", "dot")[number % 2], "width": 3 - number % 2, "color": colour(role)},
                "hoverinfo": "skip",
            })  # fmt: skip
    layout = layout_for("tenth of the spectrum, %, strongest first", "share of ‖ΔW‖²", legend=True)
    layout["yaxis"]["tickformat"] = ".0%"
    return {"data": data, "layout": layout | {"barmode": "group"}}


def together(rows: Sequence[Row], names: Sequence[str], key: str, title: str) -> Figure:
    """One number of every fine-tune per layer: a colour for each role, dashes for each fine-tune."""
    data = []
    for at, name in enumerate(names):
        for stack in stacks(rows):
            for role in roles(of_stack(rows, stack)):
                chosen = sorted(of_stack(of_role(rows, role), stack), key=lambda row: row.layer)
                values = [change_metric(at, key)(row) for row in chosen]
                label = f"{typeset(name)}: {line_name(role, stack)}"
                data.append(series([row.layer for row in chosen], values, role, label, rows[0].unit, at))
    layout = layout_for(rows[0].unit, title, legend=True, zero=True)
    layout["margin"]["t"] = 22 + 22 * min(4, -(-len(data) // 2))
    return {"data": data, "layout": over_layers(layout, [row.layer for row in rows])}
