"""The metrics of an analysis on a terminal: median, range, and the course over the layers as a row of bars that takes
what is left of the line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.text import Text

from ..display.text import BARS
from ..methods import symbol
from ..metrics.definitions import BY_KEY
from ..report.rows import Row, change_metric, of_role, of_stack, once, read_rows, roles, stacks
from ..report.words import number

METRICS = ("effective_rank_share", "outlier_share", "alpha")
CHANGE_METRICS = ("relative_change", "delta_above")
Values = Sequence[float | None]
_ROOM = 24  # columns; with less, bars get a line of their own
_INSET, _GAP, _UNKNOWN = "  ", " ", "·"


@dataclass(frozen=True)
class _Line:
    """One metric of one role; `stacks` are its values, stack by stack."""

    role: str
    matrix: str
    middle: str
    span: str
    stacks: Sequence[Values]


def metric_lines(document: Mapping[str, Any], width: int) -> Iterator[Text]:
    """For each metric its name and a line for each role, or two where `width` is small."""
    rows = read_rows(document)
    blocks = [(name, found) for name, metric, at in _shown(document) if (found := list(_lines(rows, metric, at)))]
    lines = [line for _, found in blocks for line in found]
    if not lines:
        return
    sizes = [max(len(getattr(line, name)) for line in lines) for name in ("matrix", "middle", "span")]
    yield Text(f"{'':{len(_INSET) + sizes[0]}}  {'median':>{sizes[1]}}  lowest … highest", style="dim")
    for name, found in blocks:
        yield Text(name, style="bold")
        for line in found:
            yield from _drawn(line, sizes, width)
    yield Text(_legend(stacks(rows), lines, width, sizes), style="dim")


def _shown(document: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[Row], float | None], int | None]]:
    """Name of each metric, what reads it, and the number of the fine-tune that it is of; those of fine-tunes first."""
    for at, tuned in enumerate(document["against"]):
        yield from ((f"{BY_KEY[key].label} ({tuned['name']})", change_metric(at, key), at) for key in CHANGE_METRICS)
    yield from ((BY_KEY[key].label, lambda row, key=key: row.metrics[key], None) for key in METRICS)


def _lines(rows: Sequence[Row], metric: Callable[[Row], float | None], at: int | None) -> Iterator[_Line]:
    for role in roles(rows):
        of = of_role(rows, role)
        known = [value for row in once(of, at) if (value := metric(row)) is not None]  # copies count once
        if known:
            held = [[metric(row) for row in of_stack(of, stack)] for stack in stacks(of)]
            span = f"{number(min(known))} … {number(max(known))}"
            yield _Line(role, symbol(role), number(median(known)), span, held)


def _legend(names: Sequence[str], lines: Sequence[_Line], width: int, sizes: Sequence[int]) -> str:
    """What a bar stands for."""
    longest = max(lines, key=lambda line: sum(map(len, line.stacks))).stacks
    shared = together(longest, _columns(width, sizes))
    told = f"Bars: lowest to highest{f', one for {shared} layers' if shared > 1 else ''}"
    apart = len(_apart(longest, _columns(width, sizes))) > 1
    return f"{told}; from left to right {', '.join(names)}." if apart else f"{told}."


def _drawn(line: _Line, sizes: Sequence[int], width: int) -> Iterator[Text]:
    head = f"{_INSET}{line.matrix:<{sizes[0]}}  {line.middle:>{sizes[1]}}  {line.span:>{sizes[2]}}"
    style = "blue" if line.role == "q" else "yellow"
    drawn = Text.assemble(_INSET, (bars(line.stacks, _columns(width, sizes)), style))
    if _beside(width, sizes):
        yield Text(head) + drawn
    else:
        yield from (Text(head), drawn)


def _beside(width: int, sizes: Sequence[int]) -> int:
    """Columns for bars beside the numbers; 0 if they are too few, and bars get a line of their own."""
    left = width - sum(sizes) - 4 * len(_INSET)
    return left if left >= _ROOM else 0


def _columns(width: int, sizes: Sequence[int]) -> int:
    return _beside(width, sizes) or max(1, width - len(_INSET))


def bars(stacks: Sequence[Values], width: int) -> str:
    """Eighths of a block between the lowest and the highest of all values, in no more than `width` columns; a gap
    between stacks. Where `together` says so, a bar is the mean of neighbours in its stack."""
    known = [value for values in stacks for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return _GAP.join(
        "".join(_bar(value, low, high) for value in _means(values, together(stacks, width)))
        for values in _apart(stacks, width)
    )


def together(stacks: Sequence[Values], width: int) -> int:
    """How many layers share a bar, so that all find room."""
    shown = _apart(stacks, width)
    return next(step for step in range(1, max(map(len, shown)) + 1) if _length(shown, step) <= width)


def _apart(stacks: Sequence[Values], width: int) -> Sequence[Values]:
    """The stacks; as a single one if they have a layer each, or are too many to be told apart."""
    if max(map(len, stacks)) > 1 and 2 * len(stacks) - 1 <= width:
        return stacks
    return [[value for values in stacks for value in values]]


def _length(stacks: Sequence[Values], step: int) -> int:
    return sum(-(-len(values) // step) for values in stacks) + len(stacks) - 1


def _means(values: Values, step: int) -> Iterator[float | None]:
    for low in range(0, len(values), step):
        part = [value for value in values[low : low + step] if value is not None]
        yield sum(part) / len(part) if part else None


def _bar(value: float | None, low: float, high: float) -> str:
    """A mark of its own for what is not known; half a block where all are equal."""
    if value is None:
        return _UNKNOWN
    share = (value - low) / (high - low) if high > low else 0.5
    return BARS[min(len(BARS) - 1, int(len(BARS) * share))]
