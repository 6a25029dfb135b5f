"""The figures of a model: spectra, energy, elements, heads, one number a layer; those of a stack get its rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from ..methods import symbol
from .axes import whole_step
from .drawing import (
    Figure,
    band,
    colour,
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
from .rows import AILORA, PARTS, Row, of_role, of_stack, roles, stacks
from .words import number, typeset


def spectra(rows: Sequence[Row], role: str) -> Figure:
    """All singular values of every layer of one role, with the median noise edge."""
    chosen = of_role(rows, role)
    edge = median(row.metrics["noise_edge"] for row in chosen)
    title = f"singular value of {symbol(role)}"
    lines = [
        line(row, chosen, thin(_resolved(row)), f"{typeset(row.label)}<br>index %{{x}}<br>s = %{{y:.4g}}")
        for row in chosen
    ]
    figure = with_depth(lines, chosen, layout_for("index (1 = largest)", title, log_y=True))
    return with_level(figure, edge, "noise edge (median)")


def energy(rows: Sequence[Row], role: str) -> Figure:
    """Share of the energy in the r directions that AILoRA gives to the role, against r; the page marks a rank."""
    lines, chosen = [], of_role(rows, role)
    for row in chosen:
        points = list(zip(row.cuts.ranks, row.held, strict=True))
        points = [(rank, short(share)) for rank, share in points if share > 0]
        lines.append(line(row, chosen, points, f"{typeset(row.label)}<br>rank %{{x}}<br>%{{y:.3%}} of the energy"))
    layout = layout_for("rank r", f"energy of the {AILORA[role]} r of {symbol(role)}", log_y=PARTS[role] == "bottom")
    layout["xaxis"] |= {"type": "log"}
    if PARTS[role] == "top":
        layout["yaxis"]["tickformat"] = ".0%"
    return with_depth(lines, chosen, layout)


def elements(rows: Sequence[Row], role: str, at: int | None = None) -> Figure:
    """Distribution of the elements per layer: 5 to 95 %, quartiles, median; dotted after tuning number `at`.

    Bars for one layer, since a band needs two."""
    chosen = of_role(rows, role)
    layers, levels, shade = [row.layer for row in chosen], chosen[0].quantile_levels, colour(role)
    if len(layers) == 1:  # a band needs a width
        layers, chosen = [layers[0] - 0.3, layers[0] + 0.3], [*chosen, *chosen]  # type: ignore[list-item]
    quantile = {level: [row.quantiles[i] for row in chosen] for i, level in enumerate(levels)}
    data = [
        band(layers, quantile[0.05], quantile[0.95], shade, 0.18, "5 to 95 %"),
        band(layers, quantile[0.25], quantile[0.75], shade, 0.4, "25 to 75 %"),
        series(layers, quantile[0.5], role, "median"),
    ]
    if at is not None:
        for level, name in ((0.05, "after: 5, 25, 75, 95 %"), (0.25, ""), (0.75, ""), (0.95, "")):
            after = [row.changes[at].quantiles[levels.index(level)] for row in chosen]
            style = {"dash": "dot", "width": 1.5, "color": shade}
            data.append(series(layers, after, role, name) | {"line": style, "showlegend": bool(name), "mode": "lines"})
    layout = layout_for(rows[0].unit, f"element of {symbol(role)}", legend=True)
    return {"data": data, "layout": over_layers(layout, [row.layer for row in chosen])}


def by_layer(rows: Sequence[Row], value: Callable[[Row], float | None], title: str, *, height: int = 360) -> Figure:
    """One number per layer: a colour for each role, dashes for each stack."""
    data = []
    for at, stack in enumerate(stacks(rows)):
        for role in roles(of_stack(rows, stack)):
            chosen = sorted(of_stack(of_role(rows, role), stack), key=lambda row: row.layer)
            known = [value(row) for row in chosen]
            data.append(series([row.layer for row in chosen], known, role, line_name(role, stack), rows[0].unit, at))
    layout = layout_for(rows[0].unit, title, legend=True, zero=True, height=height)
    lines = -(-len(data) // 3)  # of the legend
    layout["margin"]["t"] = 22 + 22 * min(lines, 4)
    return {"data": data, "layout": over_layers(layout, [row.layer for row in rows])}


def heads(rows: Sequence[Row], role: str, key: str, label: str) -> Figure:
    """A map layer x head of one number; colours run from the 2nd to the 98th percentile."""
    chosen = [row for row in of_role(rows, role) if row.heads]
    z = [[short(head[key]) for head in row.heads] for row in chosen]
    count, flat = max(map(len, z)), sorted(value for row in z for value in row)
    low, high = (flat[round(share * (len(flat) - 1))] for share in (0.02, 0.98))
    ticks = [low + (high - low) * part / 4 for part in range(5)] if high > low else [low]
    data = {
        "type": "heatmap", "x": list(range(count)), "y": [str(row.layer) for row in chosen], "z": z,
        "colorscale": "Cividis", "xgap": 1, "ygap": 1 if len(z) <= 40 else 0, "zmin": low, "zmax": high or 1.0,
        "colorbar": {"thickness": 12, "outlinewidth": 0, "title": {"text": label, "side": "right"}, "tickvals": ticks,
                     "ticktext": [number(tick) for tick in ticks]},
        "hovertemplate": f"{rows[0].unit} %{{y}}, head %{{x}}<br>{label} %{{z:.4g}}<extra></extra>",
    }  # fmt: skip
    layout = layout_for(f"head of {symbol(role)}", rows[0].unit, height=min(620, max(240, 90 + 16 * len(z))))
    layout["xaxis"] |= {"type": "category"}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "dtick": whole_step(len(z), 20)}
    return {"data": [data], "layout": layout | {"meta": {"layers": "y"}}}


def _resolved(row: Row) -> list[float]:
    floor = row.floor
    return [value for value in row.singular_values if value >= floor and value > 0]
