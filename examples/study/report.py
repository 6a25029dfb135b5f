"""The outcome of the study as a page, a table and a plain conclusion that says no more than the data.

    python examples/study/report.py reports/study/minilm-full.jsonl

writes the page (.html, opens offline) and the table with the conclusion (.md) beside the lines.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from conclusion import conclusion, spread, titles
from outcome import Line, Outcome, outcomes

from ailora_tools.report.body import Parts
from ailora_tools.report.drawing import Figure, layout_for, short
from ailora_tools.report.frame import Frame, framed
from ailora_tools.report.words import typeset

COLOURS = {
    "lora": "#1c7ed6", "ailora": "#e8590c", "ailora-balanced": "#f08c00", "ailora-reversed": "#9c36b5",
    "full": "#5c6770", "pissa": "#0c8599", "milora": "#2f9e44", "rslora": "#74b8f0", "dora": "#5c7cfa",
    "olora": "#8fae5b", "nlora": "#b59a5b", "mica": "#d6336c", "bitfit": "#a1887f",
    "ailora-orthonormal": "#5f3dc4", "rlmo": "#66a80f",
}  # fmt: skip
_OPEN = 8  # sentences
_SHOWN = 1.35  # times the lowest loss: what is above is cut off, lest it flattens the rest
_STRONG = ("lora", "ailora", "ailora-balanced", "ailora-orthonormal", "ailora-reversed", "pissa", "full")  # drawn thick
HEAD = (
    "method", "trained", "learning rate", "seeds", "test loss", "score", "steps to LoRA's loss", "other text", "ΔQ/Q",
    "ΔV/V",
)  # fmt: skip


def row(one: Outcome) -> tuple[str, ...]:
    """The cells of the table."""
    return (
        one.arm, f"{one.trained:,}", f"{one.lr:g}{' (end of the ladder)' if one.edge else ''}", str(len(one.loss)),
        spread(one.loss.values()), spread(one.score.values()), _steps(one.reached), spread(one.other.values()),
        *(f"{one.drift[role]:.3f}" if role in one.drift else "-" for role in "qv"),
    )  # fmt: skip


def _steps(reached: Sequence[int | None]) -> str:
    """The median over the seeds, of which one that never got there counts as endless."""
    middle = median(math.inf if step is None else step for step in reached)
    return "never" if math.isinf(middle) else f"{middle:g}"


def markdown(found: Sequence[Outcome], lines: Sequence[Line]) -> str:
    """Table and conclusion."""
    table = [HEAD, ("---",) * len(HEAD), *map(row, found)]
    cells = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return cells + "\n\n" + "\n".join(f"- {sentence}" for sentence in conclusion(found, lines)) + "\n"


def page(found: Sequence[Outcome], lines: Sequence[Line]) -> str:
    """One HTML file in the style of the reports of `analyze`, without outside requests."""
    title, parts, first = titles(lines), Parts(), lines[0]
    parts.section("findings", "What the data say", escape(title.question), _findings(conclusion(found, lines)))
    cards = [parts.card(name, *told, figure) for name, told, figure in _cards(found, title.other)]
    lead = "Every method at the best of its own learning rates, chosen on dev texts and judged on test texts."
    parts.section("figures", "Losses, learning rates and other text", lead, f'<div class="grid">{"".join(cards)}</div>')
    parts.section("table", "All methods", "Median over the seeds (least to greatest).", _table(found))
    frame = Frame(
        title=f"{title.name}: does the start help?",
        kind="Does the start help?",
        heading=escape(title.name),
        facts=_facts(found, lines, title.task),
        footer=f"<p>{escape(_versions(lines))}</p>",
        slug=f"study-{first['task']}",
    )
    cells = "\n".join(",".join(f'"{cell}"' for cell in line) for line in (HEAD, *map(row, found)))
    return framed(parts, frame, {"document": list(lines), "csv": cells + "\n"})


def _versions(lines: Sequence[Line]) -> str:
    """Of all runs, which may have been made at several times."""
    found = {name: sorted({line["versions"].get(name, "") for line in lines}) for name in lines[0]["versions"]}
    return ", ".join(f"{name} {' and '.join(values)}" for name, values in found.items())


def _findings(sentences: Sequence[str]) -> str:
    """The first are open, the rest unfolds."""
    items = [f"<li>{typeset(sentence)}</li>" for sentence in sentences]
    more = f'<ul class="findings more">{"".join(items[_OPEN:])}</ul>'
    rest = f"<details><summary>{len(items) - _OPEN} more</summary>{more}</details>" if items[_OPEN:] else ""
    return f'<ul class="findings">{"".join(items[:_OPEN])}</ul>{rest}'


def _facts(found: Sequence[Outcome], lines: Sequence[Line], task: str) -> list[tuple[str, str]]:
    first, form = lines[0], lines[0]["form"]
    return [
        ("task", task),
        ("runs", f"{len(lines)} of {len(found)} methods"),
        ("training", f"{form['steps']} steps of {form['batch']} texts"),
        ("texts", f"{form['train']:,} to train, {form['dev']:,} to choose, {form['test']:,} to judge"),
        ("rank", str(first["rank"])),
        ("took", f"{sum(line['seconds'] for line in lines) / 3600:.1f} hours, run after run"),
    ]


def _cards(found: Sequence[Outcome], other: str) -> list[tuple[str, tuple[str, str], Figure]]:
    """(name, (title, how to read it), figure)."""
    return [
        ("losses", ("Test loss", "A point a seed, a bar the median; dashed: the range of LoRA."), _losses(found)),
        (
            "rates",
            (
                "Against learning rate",
                "Dev loss at the end, median over the seeds; lines that leave the figure diverge.",
            ),
            _rates(found),
        ),
        ("curves", ("On the way", "Dev loss at the best learning rate, median over the seeds."), _curves(found)),
        ("other", ("What it costs elsewhere", f"Test loss against {other}; a point a seed."), _other(found)),
    ]


def _losses(found: Sequence[Outcome]) -> Figure:
    worst_first = list(reversed(found))
    colours = [_colour(one) for one in worst_first]
    data = [_dots(one, list(one.loss.values()), [one.arm] * len(one.loss)) for one in worst_first]
    data.append({
        "type": "scatter", "mode": "markers", "x": [short(one.middle) for one in worst_first],
        "y": [one.arm for one in worst_first], "hoverinfo": "skip", "showlegend": False,
        "marker": {"symbol": "line-ns", "size": 18, "line": {"width": 2.5, "color": colours}},
    })  # fmt: skip
    layout = layout_for("test loss", "", height=430)
    layout["yaxis"] |= {"type": "category", "title": {"text": "method", "standoff": 12}, "automargin": True}
    lora = next((list(one.loss.values()) for one in found if one.arm == "lora"), [])
    layout["shapes"] = [
        {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": edge, "x1": edge,
         "line": {"dash": "dash", "width": 1, "color": COLOURS["lora"]}}
        for edge in ((min(lora), max(lora)) if lora else ())
    ]  # fmt: skip
    return {"data": data, "layout": layout}


def _rates(found: Sequence[Outcome]) -> Figure:
    data = [_line(one, [(lr, median(losses)) for lr, losses in one.by_rate.items()]) for one in found]
    layout = _with_legend(layout_for("learning rate", "dev loss at the end", height=430, legend=True))
    layout["xaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 1}
    lowest = min(median(losses) for one in found for losses in one.by_rate.values())
    layout["yaxis"]["range"] = [0.98 * lowest, _SHOWN * lowest]
    return {"data": data, "layout": layout}


def _curves(found: Sequence[Outcome]) -> Figure:
    layout = _with_legend(layout_for("step", "dev loss", height=430, legend=True))
    return {"data": [_line(one, one.curve) for one in found], "layout": layout}


def _other(found: Sequence[Outcome]) -> Figure:
    data = [_dots(one, list(one.other.values()), list(one.loss.values())) for one in found]
    layout = _with_legend(layout_for("other text", "test loss", height=430, legend=True))
    return {"data": [trace | {"showlegend": True} for trace in data], "layout": layout}


def _with_legend(layout: dict[str, Any]) -> dict[str, Any]:
    layout["legend"] = {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "font": {"size": 11}}
    return layout | {"margin": {"l": 64, "r": 16, "t": 12, "b": 48}}


def _line(one: Outcome, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    known = [(x, short(y)) for x, y in points if math.isfinite(y)]
    return {
        "type": "scatter", "mode": "lines+markers", "name": one.arm, "x": [x for x, _ in known],
        "y": [y for _, y in known], "line": {"color": _colour(one), "width": 2.5 if one.arm in _STRONG else 1.2},
        "marker": {"size": 6}, "hovertemplate": f"{one.arm}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
    }  # fmt: skip


def _dots(one: Outcome, x: Sequence[float], y: Sequence[Any]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": one.arm, "x": [short(value) for value in x],
        "y": [short(value) if isinstance(value, float) else value for value in y], "showlegend": False,
        "marker": {"color": _colour(one), "size": 8, "opacity": 0.75},
        "hovertemplate": f"{one.arm}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>",
    }  # fmt: skip


def _colour(one: Outcome) -> str:
    return COLOURS[one.arm]


def _table(found: Sequence[Outcome]) -> str:
    """Sortable by page.js, by the medians."""
    keys: tuple[Callable[[Outcome], float], ...] = (
        lambda one: found.index(one), lambda one: one.trained, lambda one: one.lr, lambda one: len(one.loss),
        lambda one: one.middle, lambda one: median(one.score.values()),
        lambda one: median(math.inf if step is None else step for step in one.reached),
        lambda one: median(one.other.values()),
        lambda one: one.drift.get("q", 0.0), lambda one: one.drift.get("v", 0.0),
    )  # fmt: skip
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in HEAD)
    body = "".join(_table_row(one, keys) for one in found)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_row(one: Outcome, keys: Sequence[Callable[[Outcome], float]]) -> str:
    values = [key(one) for key in keys]
    cells = "".join(
        f'<td data-value="{value if math.isfinite(value) else 1e99}">{escape(cell)}</td>'
        for value, cell in zip(values, row(one), strict=True)
    )
    return f"<tr{' class=chosen' if one.arm == 'ailora' else ''}>{cells}</tr>"


def write(path: Path) -> None:
    """Page and table beside the lines."""
    lines: list[Mapping[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    found = outcomes(lines)
    path.with_suffix(".md").write_text(markdown(found, lines), encoding="utf-8")
    path.with_suffix(".html").write_text(page(found, lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    write(parser.parse_args().lines)
