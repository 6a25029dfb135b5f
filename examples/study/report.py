"""The outcome of the study as a page, a table and a plain conclusion that says no more than the data.

    python examples/study/report.py reports/study/minilm-quick.jsonl

writes the page (.html, opens offline) and the table (.md) beside the lines.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from ailora_tools.report.page import plotly_script

COLOURS = {
    "lora": "#1c7ed6", "ailora": "#e8590c", "ailora-balanced": "#f59f00", "ailora-reversed": "#9c36b5",
    "full": "#495057", "pissa": "#0b7285",
}  # fmt: skip
PAIRS = (
    ("ailora", "lora"), ("ailora", "ailora-reversed"), ("ailora-balanced", "ailora"), ("ailora-balanced", "lora"),
    ("ailora", "pissa"), ("ailora", "milora"),
)  # fmt: skip
_OTHER = "#adb5bd"
HEAD = (
    "method", "trained", "learning rate", "held-out loss", "score", "steps to LoRA's loss", "other text", "ΔQ/Q",
    "ΔV/V",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One arm at its best learning rate. `losses` and `scores` are over the seeds; `edge`: the best rate is at an end
    of those tried; `reached`: step of the first look at or below LoRA's final loss."""

    arm: str
    trained: int
    lr: float
    losses: tuple[float, ...]
    scores: tuple[float, ...]
    curve: Sequence[Mapping[str, float]]
    by_rate: Mapping[float, float]
    other: float
    drift: Mapping[str, float]
    edge: bool
    reached: int | None

    @property
    def loss(self) -> float:
        return median(self.losses)


def outcomes(lines: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """All arms, best first. The learning rate is chosen by the median held-out loss over the seeds that are there."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        arms.setdefault(line["arm"], []).append(line)
    target = _one("lora", arms["lora"], None).loss if "lora" in arms else None
    return sorted((_one(arm, found, target) for arm, found in arms.items()), key=lambda one: one.loss)


def _one(arm: str, lines: Sequence[Mapping[str, Any]], target: float | None) -> Outcome:
    seeds = {lr: len({line["seed"] for line in lines if line["lr"] == lr}) for lr in {line["lr"] for line in lines}}
    by_rate = {lr: median(line["final"]["loss"] for line in lines if line["lr"] == lr) for lr in sorted(seeds)}
    full = [lr for lr in by_rate if seeds[lr] == max(seeds.values())]
    lr = min(full, key=lambda rate: by_rate[rate])
    best = [line for line in lines if line["lr"] == lr]
    first = next(line for line in best if line["seed"] == 0)
    reached = [look["step"] for look in first["looks"] if target is not None and look["loss"] <= target]
    return Outcome(
        arm, first["trained"], lr,
        tuple(line["final"]["loss"] for line in best), tuple(line["final"]["score"] for line in best),
        first["looks"], by_rate, first["other_text"]["after"] - first["other_text"]["before"], first["drift"],
        lr in (min(by_rate), max(by_rate)), reached[0] if reached else None,
    )  # fmt: skip


def row(one: Outcome) -> tuple[str, ...]:
    """The cells of the table."""
    return (
        one.arm, f"{one.trained:,}", f"{one.lr:g}{' (end of the ladder)' if one.edge else ''}", _range(one.losses),
        _range(one.scores), str(one.reached or "never"), f"{one.other:.3g}",
        *(f"{one.drift[role]:.3f}" for role in "qv"),
    )  # fmt: skip


def _range(values: Sequence[float]) -> str:
    middle = f"{median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def conclusion(found: Sequence[Outcome], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What holds and what does not. Losses whose ranges over the seeds overlap are called the same."""
    by = {one.arm: one for one in found}
    said = [_setting(found, lines)]
    single = [one.arm for one in found if len(one.losses) == 1]
    if single:
        said.append(
            f"One seed only for {', '.join(single)}: how far such runs lie apart is not known, and {_error(lines)}. "
            "Their order is an observation, not a finding."
        )
    said += [_compared(by[first], by[second]) for first, second in PAIRS if first in by and second in by]
    return said


def _setting(found: Sequence[Outcome], lines: Sequence[Mapping[str, Any]]) -> str:
    one, seeds = lines[0], sorted({len(item.losses) for item in found})
    told = " or ".join(str(count) for count in seeds) + (" seed" if seeds == [1] else " seeds")
    return (
        f"{len(lines)} runs of {one['steps']} steps with {one['batch']} texts each, {len(found)} methods, every one at "
        f"the best of its own learning rates (chosen on the same held-out texts), {told} there. Lowest held-out loss: "
        f"{found[0].arm}, {_range(found[0].losses)}."
    )


def _error(lines: Sequence[Mapping[str, Any]]) -> str:
    count = lines[0]["test"]
    if any(line["final"]["score"] < 0 for line in lines):  # no share of texts told right
        return f"only {count} texts were held out"
    return f"a score over {count} held-out texts is itself uncertain by up to {0.5 / math.sqrt(count):.3f}"


def _compared(first: Outcome, second: Outcome) -> str:
    several = min(len(first.losses), len(second.losses)) > 1
    apart = max(first.losses) < min(second.losses) or max(second.losses) < min(first.losses)
    lower = "lower" if first.loss < second.loss else "higher"
    told = f"{first.arm} against {second.arm}: held-out loss {_range(first.losses)} against {_range(second.losses)}, "
    if not several:
        return told + f"{lower} by {abs(first.loss - second.loss):.3f} in one seed."
    return told + (f"{lower} in every seed." if apart else "ranges overlap: no difference shown.")


def markdown(found: Sequence[Outcome], lines: Sequence[Mapping[str, Any]]) -> str:
    """Table and conclusion."""
    table = [HEAD, ("---",) * len(HEAD), *map(row, found)]
    cells = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return cells + "\n\n" + "\n".join(f"- {sentence}" for sentence in conclusion(found, lines)) + "\n"


def figures(found: Sequence[Outcome]) -> dict[str, Any]:
    """Loss against learning rate, and held-out loss on the way, as plotly.js takes them."""
    rates = [_line(one, list(one.by_rate), list(one.by_rate.values())) for one in found]
    curves = [_line(one, [look["step"] for look in one.curve], [look["loss"] for look in one.curve]) for one in found]
    return {
        "rates": {"data": rates, "layout": _layout("learning rate", "held-out loss at the end", "log")},
        "curves": {"data": curves, "layout": _layout("step", "held-out loss at the best learning rate", "linear")},
    }


def _line(one: Outcome, x: list[float], y: list[float]) -> dict[str, Any]:
    strong = one.arm in COLOURS
    return {
        "type": "scatter", "mode": "lines+markers", "name": one.arm, "x": x, "y": y,
        "line": {"color": COLOURS.get(one.arm, _OTHER), "width": 2.5 if strong else 1.2},
        "hovertemplate": f"{one.arm}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
    }  # fmt: skip


def _layout(x: str, y: str, kind: str) -> dict[str, Any]:
    return {
        "margin": {"l": 60, "r": 10, "t": 10, "b": 45}, "height": 430, "legend": {"orientation": "h", "y": -0.18},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "#868e96"},
        "xaxis": {"title": {"text": x}, "type": kind, "exponentformat": "e", "gridcolor": "rgba(134,142,150,.25)"},
        "yaxis": {"title": {"text": y}, "gridcolor": "rgba(134,142,150,.25)", "zeroline": False},
    }  # fmt: skip


def page(title: str, found: Sequence[Outcome], lines: Sequence[Mapping[str, Any]]) -> str:
    """One HTML file without outside requests."""
    cells = "".join(
        f"<tr class='{'chosen' if one.arm == 'ailora' else ''}'>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row(one))
        for one in found
    )
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in conclusion(found, lines))
    css = files("ailora_tools.report").joinpath("page.css").read_text("utf-8")
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    return Template(_PAGE).substitute(
        title=escape(title), css=css, said=said, head=head, cells=cells,
        data=json.dumps(figures(found)).replace("<", "\\u003c"), plotly=plotly_script(),
    )  # fmt: skip


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>$title</title><style>$css</style></head><body>
<header><p class="kind">Does the start help?</p><h1>$title</h1></header><main>
<h2>What the data say</h2><ul class="findings">$said</ul>
<h2>Every method at its own learning rate</h2>
<p class="lead">Lower is better. Other text: what became of text that was not trained on (see tasks.py).</p>
<div class="grid"><div class="card"><div class="figure" id="rates"></div></div>
<div class="card"><div class="figure" id="curves"></div></div></div>
<h2>Table</h2><div class="scroll"><table><thead><tr>$head</tr></thead><tbody>$cells</tbody></table></div></main>
<script type="application/json" id="data">$data</script><script>$plotly</script>
<script>const all=JSON.parse(document.getElementById("data").textContent);
const options={responsive:true,displaylogo:false};
function drawAll(){for(const id in all)Plotly.newPlot(id,all[id].data,all[id].layout,options)}
drawAll()</script></body></html>
"""


def write(path: Path) -> None:
    """Page and table beside the lines."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = outcomes(lines)
    path.with_suffix(".md").write_text(markdown(found, lines), encoding="utf-8")
    task, _, form = path.stem.partition("-")
    path.with_suffix(".html").write_text(page(f"{task}, {form or 'own'} form", found, lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    write(parser.parse_args().lines)
