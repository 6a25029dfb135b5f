"""The map layer x role: one set of colours, texts and ticks for every metric, for the page's menu to choose from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.definitions import DEFINITIONS, Definition
from .axes import whole_step
from .drawing import layout_for, line_name, short
from .rows import Row, of_stack, roles, stacks
from .words import number, typeset


def overview(rows: Sequence[Row], at: int | None = None) -> dict[str, Any]:
    """A map layer x role, with one set of values per metric for the menu; `at` adds those of a change."""
    lines = [(stack, role) for stack in stacks(rows) for role in roles(of_stack(rows, stack))]
    layers = sorted({row.layer for row in rows})
    where = {(row.stack, row.role, row.layer): row for row in rows}
    names = [line_name(role, stack) for stack, role in lines]

    def values(of: Definition) -> list[list[float | None]]:
        cells = [[where.get((stack, role, layer)) for layer in layers] for stack, role in lines]
        return [[_metric(row, of, at) if row else None for row in line] for line in cells]

    offered = [row for row in DEFINITIONS if row.of == "matrix" or at is not None]
    offered = sorted(offered, key=lambda row: row.of != "change") if at is not None else offered
    maps = {row.key: metric_map(row, values(row)) for row in offered}
    data = {
        "type": "heatmap", "x": [str(layer) for layer in layers], "y": names, "xgap": _gap(len(layers)), "ygap": 2,
        "colorscale": "Cividis", "hoverongaps": False, "colorbar": {"thickness": 12, "outlinewidth": 0},
        "customdata": [[typeset(row.tensor) if (row := where.get((*line, layer))) else "" for layer in layers]
                       for line in lines],
        "meta": [list(line) for line in lines],
    }  # fmt: skip
    layout = layout_for(rows[0].unit, "", height=96 + max(28, min(46, 400 // len(lines))) * len(lines))
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "category"
    layout["xaxis"] |= {"dtick": whole_step(len(layers), 24), "tickangle": 0}
    layout["yaxis"] |= {"autorange": "reversed", "ticks": ""}
    layout["annotations"] = _absent(lines, layers, where)
    return {"figure": {"data": [data], "layout": layout | {"meta": {"layers": "x"}}}, "maps": maps}


def _gap(layers: int) -> int:
    """Pixels between cells, which must not be wider than the cells."""
    return 2 if layers <= 40 else 1 if layers <= 90 else 0


def _absent(lines: Sequence[tuple[str, str]], layers: Sequence[int], where: Mapping[Any, Row]) -> list[dict[str, Any]]:
    """A cross where a matrix of a layer could not be analysed while another of that layer was."""
    there = {(stack, layer) for stack, _, layer in where}
    return [
        {"x": str(layer), "y": line_name(role, stack), "text": "✕", "showarrow": False}
        for stack, role in lines
        for layer in layers
        if (stack, layer) in there and (stack, role, layer) not in where
    ]


def _metric(row: Row, of: Definition, at: int | None) -> float | None:
    if of.of == "change":
        return None if at is None else row.changes[at].metrics[of.key]
    return row.metrics[of.key]  # type: ignore[no-any-return]


def metric_map(of: Definition, values: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Values for colour (logarithms where that shows more), texts for people, a range that outliers do not set."""
    known = sorted(value for line in values for value in line if value is not None)
    logarithmic = of.log and bool(known) and known[0] > 0 and known[-1] > 3 * known[0]
    drawn = [[_drawn(value, logarithmic) for value in line] for line in values]
    flat = sorted(value for line in drawn for value in line if value is not None)
    low, high = (_quantile(flat, 0.02), _quantile(flat, 0.98)) if flat else (0.0, 1.0)
    return {
        "label": of.label + (" (log scale)" if logarithmic else ""),
        "z": drawn,
        "text": [["" if value is None else number(value) for value in line] for line in values],
        "range": [low, high] if high > low else [low - 0.5, low + 0.5],
        "ticks": _ticks(low, high, logarithmic),
        "of": of.of,
    }


def _drawn(value: float | None, logarithmic: bool) -> float | None:
    return None if value is None else short(math.log10(value) if logarithmic else value)


def _ticks(low: float, high: float, logarithmic: bool) -> dict[str, list[Any]]:
    """Five values with their texts: logarithms are shown as what they are the logarithms of."""
    at = [low + (high - low) * step / 4 for step in range(5)] if high > low else [low]
    return {"values": at, "texts": [number(10**value if logarithmic else value) for value in at]}


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]
