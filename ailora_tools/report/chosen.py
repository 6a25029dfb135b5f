"""The section on the modules that `analyze --suggest-targets` names: why these, where they lie, and lists to copy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..metrics.modules import scores
from . import figures
from .body import Parts
from .drawing import Figure, line_name, series, with_level
from .rows import Row, of_role, of_stack, roles, stacks
from .words import number, percent, raised

Targets = Mapping[str, Any]
WHAT = {"condition": "condition number", "change": "‖ΔW‖ / ‖W‖"}
_WHY = {
    "condition": "those of the smallest condition numbers, as KappaTune chooses them (arXiv 2506.16289): what training "
    "adds there is said to overwrite least. No measurement here says that they train better.",
    "change": "those that fine-tuning changed most, ‖ΔW‖ / ‖W‖. Another training may change others.",
    "changes": "those that the fine-tunes changed most, ‖ΔW‖ / ‖W‖ in the mean. Another training may change others.",
}
_FADED = "a0"  # of ff, behind a colour
_SHORT = 24  # modules: so many are listed at once


def why(document: Mapping[str, Any]) -> str:
    """How many were chosen, by what, and what that does not say, as plain text."""
    targets = document["targets"]
    reason = _WHY["changes" if len(document["against"]) > 1 else targets["basis"]]
    return f"{len(targets['modules'])} of the {targets['of']} modules analysed: {reason}"


def in_order(rows: Sequence[Row], targets: Targets) -> Iterator[tuple[list[Row], str, str]]:
    """The matrices of each chosen module, its path, and its number as text; the first choice first."""
    basis = targets["basis"]
    write = number if basis == "condition" else percent
    held: dict[str, list[Row]] = {}
    for row in rows:
        held.setdefault(row.module, []).append(row)
    for one in targets["modules"]:
        yield held.get(one["module"], []), one["module"], write(one[basis])


def targets_section(parts: Parts, rows: Sequence[Row], document: Mapping[str, Any]) -> None:
    """Append it; its figure goes into `parts`."""
    targets = document["targets"]
    figure = _figure(rows, targets, scores(document["matrices"], targets["basis"]))
    parts.section(
        "targets", "Modules to adapt", why(document),
        parts.card("targets", "Where they are", _reading(targets), figure) + _lists(targets) + _table(rows, targets),
    )  # fmt: skip


def _reading(targets: Targets) -> str:
    side = "below" if targets["basis"] == "condition" else "above"
    return f"Large marks are suggested: all that lies {side} the dashed line, where the choice ends."


def _figure(rows: Sequence[Row], targets: Targets, of: Mapping[str, float]) -> Figure:
    """A thin line a role over the layers, and a large mark on what was chosen."""
    basis, chosen = targets["basis"], set(targets["target_modules"])
    figure = figures.by_layer(rows, lambda row: of[row.module] or None, WHAT[basis])  # zero has no logarithm
    if basis == "condition":
        figure["layout"]["yaxis"] |= {"type": "log", "rangemode": "normal"}
    for trace in figure["data"]:
        shade = trace["marker"]["color"] + _FADED
        trace["mode"] = "lines+markers"
        trace["line"] |= {"width": 1, "color": shade}
        trace["marker"] |= {"size": 4, "color": shade}
    figure["data"] += _marks([row for row in rows if row.module in chosen], of)
    others = [value for module, value in of.items() if module not in chosen]
    return _with_end(figure, [of[module] for module in chosen], others, basis) if others else figure


def _with_end(figure: Figure, chosen: Sequence[float], others: Sequence[float], basis: str) -> Figure:
    """A line half way between the last one chosen and the first one not; its name stands over the figure, for here it
    would cover the marks beside it."""
    ends = (max(chosen), min(others)) if basis == "condition" else (min(chosen), max(others))
    level = math.sqrt(ends[0]) * math.sqrt(ends[1]) if basis == "condition" else sum(ends) / 2
    drawn = with_level(figure, level, "end of the choice")
    del drawn["layout"]["shapes"][0]["label"]
    return drawn


def _marks(chosen: Sequence[Row], of: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for stack in stacks(chosen):
        for role in roles(of_stack(chosen, stack)):
            own = of_stack(of_role(chosen, role), stack)
            name = f"{line_name(role, stack)}, suggested"
            trace = series([row.layer for row in own], [of[row.module] for row in own], role, name, own[0].unit)
            marker = {**trace["marker"], "size": 11}
            yield trace | {"mode": "markers", "marker": marker, "showlegend": False}


def _lists(targets: Targets) -> str:
    """For PEFT in Python and for Axolotl in YAML, each with a button that copies it."""
    modules = json.dumps(targets["target_modules"], ensure_ascii=False)
    told = (("PEFT", f"target_modules={modules}"), ("Axolotl", f"lora_target_modules: {modules}"))
    lines = "".join(
        f'<div><b>{trainer}</b> <code tabindex="0">{escape(text)}</code> <button type="button" class="needs-script" '
        f'data-copy="{escape(text)}" aria-label="Copy the list for {trainer}">Copy</button></div>'
        for trainer, text in told
    )
    return f'<div class="next lists">{lines}</div>'


def _table(rows: Sequence[Row], targets: Targets) -> str:
    """The modules in the order of the choice, with the projections that lie in them."""
    lines = "".join(
        f'<tr><th scope="row">{at}</th><td>{_names(held)}</td><td>{score}</td>'
        f"<td><code>{escape(module)}</code></td></tr>"
        for at, (held, module, score) in enumerate(in_order(rows, targets), 1)
    )
    heads = ("place", "matrix", raised(WHAT[targets["basis"]]), "module")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    shown = " open" if len(targets["modules"]) <= _SHORT else ""
    return (
        f"<details{shown}><summary>In the order of the choice</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Suggested modules"><table class="chosen-modules">'
        f"<caption>One row a module, the first choice first.</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div></details>"
    )


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(
        f'<b class="role {escape(row.role)}">{line_name(row.role, row.stack)}</b> {row.layer}' for row in rows
    )
