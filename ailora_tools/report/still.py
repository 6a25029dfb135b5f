"""A figure as a still picture: HTML and SVG without a script, from the same dictionary that plotly.js takes.

It is there at once, where scripts are off, and on paper. The drawing stretches with its box while texts and strokes
keep their size; all colours of the frame are those of the page's theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from .axes import Scale, scale

_SIDE = 1000  # units of the drawing in both directions
_POINTS = 48  # of a line: what a still picture of this size can show
_CIVIDIS = (
    "#00224e",
    "#123570",
    "#3b496c",
    "#575d6d",
    "#707173",
    "#8a8678",
    "#a59c74",
    "#c3b369",
    "#e1cc55",
    "#fee838",
)
_LEVELS = 48  # shades of a map
_DASHES = {"dash": "6 4", "dot": "1.5 3", "dashdot": "7 3 1.5 3", "longdash": "11 4", "longdashdot": "11 3 1.5 3"}

_LEGEND_BELOW = 74  # pixels for up to about five lines

Trace = Mapping[str, Any]


def still(figure: Mapping[str, Any]) -> str:
    """The picture as HTML; texts of the figure are HTML already, as plotly takes them."""
    layout, traces = figure["layout"], figure["data"]
    x = scale(layout["xaxis"], [value for trace in traces for value in trace.get("x", ())])
    y = scale(layout["yaxis"], [*_heights(traces), *_levels(layout)])
    marks = "".join(_drawn(trace, traces, x, y) for trace in traces)
    shapes = "".join(_shape(shape, x, y) for shape in layout.get("shapes", ()))
    margin = layout["margin"]
    colours = next((bar for trace in traces if (bar := _colours(trace))), "")
    right = 74 if colours else margin["r"]
    below = _LEGEND_BELOW if _is_below(layout) else 0
    sizes = f"inset:{margin['t']}px {right}px {margin['b'] + below}px {margin['l']}px"
    return (
        f'<div class="still" aria-hidden="true">{_legend(traces, layout)}<div class="plot" style="{sizes}">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none">{_grid(x, y)}{marks}{shapes}</svg>'
        f"{_ticks(x, y)}{_texts(traces, layout, x, y)}{_titles(layout)}{colours}</div></div>"
    )


def _is_below(layout: Mapping[str, Any]) -> bool:
    """Whether the legend stands under the drawing."""
    return bool(layout.get("showlegend")) and layout.get("legend", {}).get("y", 1) < 0


def _heights(traces: Sequence[Trace]) -> Iterator[Any]:
    for trace in traces:
        yield from trace.get("y", ())
        if trace["type"] == "bar":
            yield 0.0


def _levels(layout: Mapping[str, Any]) -> list[float]:
    return [shape["y0"] for shape in layout.get("shapes", ()) if shape.get("xref") == "paper"]


def _place(x: float, y: float) -> tuple[int, int]:
    return round(_SIDE * x), round(_SIDE * (1 - y))


def _drawn(trace: Trace, traces: Sequence[Trace], x: Scale, y: Scale) -> str:
    if trace["type"] == "heatmap":
        return cells(trace, x, y)
    if trace["type"] == "bar":
        return _bars(trace, [other for other in traces if other["type"] == "bar"], x, y)
    return _scatter(trace, x, y)


def _scatter(trace: Trace, x: Scale, y: Scale) -> str:
    points = _points(trace, x, y)
    line, marker = trace.get("line", {}), trace.get("marker", {})
    meta = trace.get("meta", {})
    lit = f' data-layer="{meta["layer"]}"' if "layer" in meta else ""
    found = ""
    if "fill" in trace:
        return f'<path d="{_path(points)}Z" fill="{trace["fillcolor"]}"{lit}/>'
    if "lines" in trace["mode"] and len(points) > 1:
        dash = f' stroke-dasharray="{_DASHES[line["dash"]]}"' if line.get("dash") in _DASHES else ""
        width = line.get("width", 2)
        found += f'<path d="{_path(points)}" fill="none" stroke="{line["color"]}" stroke-width="{width}"{dash}{lit}/>'
    if ("markers" in trace["mode"] and "colorbar" not in marker) or "text" in trace:
        found += _dots(trace, points, lit)
    return found


def _dots(trace: Trace, points: Sequence[tuple[int, int] | None], lit: str) -> str:
    """A stroke of no length has round or square ends: a dot that keeps its shape while the drawing is stretched."""
    marker = trace["marker"]
    colours = marker.get("color", trace.get("line", {}).get("color", "currentColor"))
    if not isinstance(colours, str):
        colours = [_shade(marker["colorscale"], colours, value) for value in colours]
    cap = "round" if marker.get("symbol", "circle") == "circle" else "square"
    width = marker.get("size", 7) * (1 if cap == "round" else 0.8)
    head = f'fill="none" stroke-width="{width:g}" stroke-linecap="{cap}"{lit}'
    if isinstance(colours, str):
        path = "".join(f"M{point[0]} {point[1]}h0" for point in points if point)
        return f'<path d="{path}" stroke="{colours}" {head}/>'
    known = [(point, colour) for point, colour in zip(points, colours, strict=True) if point]
    return "".join(f'<path d="M{at[0]} {at[1]}h0" stroke="{colour}" {head}/>' for at, colour in known)


def _shade(stops: Sequence[Sequence[Any]], of: Sequence[float], value: float) -> str:
    share = (value - min(of)) / ((max(of) - min(of)) or 1)
    return str(min(stops, key=lambda stop: abs(stop[0] - share))[1])


def _points(trace: Trace, x: Scale, y: Scale) -> list[tuple[int, int] | None]:
    pairs = list(zip(trace["x"], trace["y"], strict=True))
    if len(pairs) > _POINTS and trace["mode"] == "lines" and "fill" not in trace:
        places = sorted({round(at * (len(pairs) - 1) / (_POINTS - 1)) for at in range(_POINTS)})
        pairs = [pairs[at] for at in places]
    return [None if a is None or b is None else _place(x.share(a), y.share(b)) for a, b in pairs]


def _path(points: Sequence[tuple[int, int] | None]) -> str:
    """Steps relative to the point before, which is shorter; a gap where there is none."""
    text, last = "", None
    for point in points:
        if point is not None:
            text += f"M{point[0]} {point[1]}" if last is None else f"l{point[0] - last[0]} {point[1] - last[1]}"
        last = point
    return text


def _bars(trace: Trace, bars: Sequence[Trace], x: Scale, y: Scale) -> str:
    width, place = 0.8 / len(bars) / len(x.names), bars.index(trace)
    path = ""
    for name, value in zip(trace["x"], trace["y"], strict=True):
        left, top = _place(x.share(name) + (place - len(bars) / 2) * width, y.share(value))
        bottom = _place(0, y.share(0.0))[1]
        path += f"M{left} {top}h{round(_SIDE * width)}V{bottom}h{-round(_SIDE * width)}Z"
    return f'<path d="{path}" fill="{trace["marker"]["color"]}"/>'


def cells(trace: Trace, x: Scale, y: Scale) -> str:
    """A path for each shade in use: a map of a hundred layers and heads stays small."""
    low, high = _ends(trace)
    shades: dict[int, str] = {}
    wide, tall = round(_SIDE / len(x.names)), round(_SIDE / len(y.names))
    for name, line in zip(trace["y"], trace["z"], strict=True):
        for at, value in zip(trace["x"], line, strict=False):
            if value is not None:
                level = round(_LEVELS * min(1.0, max(0.0, (value - low) / ((high - low) or 1))))
                left, top = _place(x.share(at) - 0.5 / len(x.names), y.share(name) + 0.5 / len(y.names))
                shades[level] = shades.get(level, "") + f"M{left} {top}h{wide}v{tall}h-{wide}z"
    edge = ' stroke="var(--card)" stroke-width="1"' if len(x.names) <= 64 else ""
    return "".join(f'<path d="{path}" fill="{_cividis(level / _LEVELS)}"{edge}/>' for level, path in shades.items())


def _ends(trace: Trace) -> tuple[float, float]:
    known = [value for line in trace["z"] for value in line if value is not None] or [0.0]
    return trace.get("zmin", min(known)), trace.get("zmax", max(known))


def _cividis(share: float) -> str:
    place = share * (len(_CIVIDIS) - 1)
    at = min(int(place), len(_CIVIDIS) - 2)
    ends = [[int(_CIVIDIS[i][j : j + 2], 16) for j in (1, 3, 5)] for i in (at, at + 1)]
    return "#" + "".join(f"{round(a + (b - a) * (place - at)):02x}" for a, b in zip(*ends, strict=True))


def _shape(shape: Mapping[str, Any], x: Scale, y: Scale) -> str:
    def ends(axis: Scale, name: str) -> list[float]:
        paper = shape.get(f"{name}ref") == "paper"
        return [shape[f"{name}{end}"] if paper else axis.share(shape[f"{name}{end}"]) for end in (0, 1)]

    (left, right), (low, high) = ends(x, "x"), ends(y, "y")
    line = shape["line"]
    dash = f' stroke-dasharray="{_DASHES[line["dash"]]}"' if line.get("dash") in _DASHES else ""
    path = "M{} {}L{} {}".format(*_place(left, low), *_place(right, high))
    return f'<path d="{path}" stroke="{line["color"]}" stroke-width="{line["width"]}"{dash}/>'


def _grid(x: Scale, y: Scale) -> str:
    flat = "" if y.kind == "category" else "".join(f"M0 {_place(0, at)[1]}h{_SIDE}" for at, _ in y.ticks(6))
    upright = "" if x.kind == "category" else "".join(f"M{_place(at, 0)[0]} 0v{_SIDE}" for at, _ in x.ticks(8))
    return f'<path class="grid-lines" d="{flat}{upright}"/>'


def _ticks(x: Scale, y: Scale) -> str:
    across = "".join(f'<span class="x" style="left:{100 * at:.3g}%">{text}</span>' for at, text in x.ticks(8))
    most = 6 if y.kind != "category" else 40
    up = "".join(f'<span class="y" style="top:{100 * (1 - at):.3g}%">{text}</span>' for at, text in y.ticks(most))
    return across + up


def _texts(traces: Sequence[Trace], layout: Mapping[str, Any], x: Scale, y: Scale) -> str:
    """Names beside points, and marks."""
    found = ""
    for trace in traces:
        if "text" in str(trace.get("mode")):
            for a, b, text in zip(trace["x"], trace["y"], trace["text"], strict=True):
                place = f"left:{100 * x.share(a):.4g}%;top:{100 * (1 - y.share(b)):.4g}%"
                found += f'<span class="name" style="{place}">{text}</span>'
    for note in layout.get("annotations", ()):
        place = f"left:{100 * x.share(note['x']):.4g}%;top:{100 * (1 - y.share(note['y'])):.4g}%"
        found += f'<span class="gone" style="{place}">{note["text"]}</span>'
    return found


def _titles(layout: Mapping[str, Any]) -> str:
    x, y = (layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis"))
    levels = "".join(
        f'<span class="level">┄ {escape(shape["name"])}</span>' for shape in layout.get("shapes", ()) if "name" in shape
    )
    return f'<span class="xt">{x}</span><span class="yt">{y}</span>{levels}'


def _legend(traces: Sequence[Trace], layout: Mapping[str, Any]) -> str:
    if not layout.get("showlegend"):
        return ""
    found = ""
    for trace in traces:
        if trace.get("name") and trace.get("showlegend", True):
            fill = trace.get("fillcolor") or _one_colour(trace.get("marker", {})) or trace["line"]["color"]
            colour = trace["line"]["color"] if "lines" in str(trace.get("mode")) and "fill" not in trace else fill
            dash = _DASHES.get(trace.get("line", {}).get("dash", ""), "")
            width = 8 if "fill" in trace or trace["type"] == "bar" else 2.5
            found += (
                f'<span><svg width="26" height="10"><path d="M1 5h24" stroke="{colour}" stroke-width="{width}" '
                f'stroke-dasharray="{dash}"/></svg>{trace["name"]}</span>'
            )
    return f'<div class="legend{" below" if _is_below(layout) else ""}">{found}</div>'


def _one_colour(marker: Mapping[str, Any]) -> str | None:
    """That of all its marks, or of what surrounds each where they are coloured by layer."""
    colour = marker.get("color")
    return colour if colour is None or isinstance(colour, str) else str(marker["line"]["color"])


def _colours(trace: Trace) -> str:
    """The colour bar of a map or of lines by layer, or ""."""
    bar = trace.get("colorbar") or trace.get("marker", {}).get("colorbar")
    if not bar:
        return ""
    if trace["type"] == "heatmap":
        (low, high), stops = _ends(trace), _CIVIDIS
    else:
        marker = trace["marker"]
        low, high = marker.get("cmin", min(marker["color"])), marker.get("cmax", max(marker["color"]))
        stops = tuple(stop[1] for stop in marker["colorscale"])
    span = (high - low) or 1.0
    ticks = "".join(
        f'<span class="y" style="top:{100 - 100 * (value - low) / span:.3g}%">{text}</span>'
        for value, text in zip(bar.get("tickvals", ()), bar.get("ticktext", ()), strict=True)
        if low - 1e-9 * span <= value <= high + 1e-9 * span and not math.isnan(value)
    )
    title = bar.get("title", {}).get("text", "")
    return (
        f'<div class="colours" style="background:linear-gradient(to top,{",".join(stops)})">{ticks}'
        f'<span class="ct">{title}</span></div>'
    )
