"""Scales and ticks of the still pictures, and those ticks that plotly.js would choose badly: layers, short decades."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .words import number

_ROOM = 0.04  # of the span, left free at both ends of a linear axis
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SHORT = 2.0  # decades: below, powers of ten alone would leave an axis with one number or none


@dataclass(frozen=True)
class Scale:
    """One axis: values of the data to shares of its length, 0 at its left or lower end.

    low, high: ends, as logarithms to base 10 where `kind` is "log" and as places in `names` where it is "category".
    form: plotly's tickformat, of which only percent signs are heeded.
    """

    kind: str
    low: float
    high: float
    names: Sequence[str] = ()
    reversed: bool = False
    form: str = ""
    step: float = 0.0

    def share(self, value: Any) -> float:
        """Where a value lies, 0 to 1 if it is within the axis."""
        at = float(self.names.index(str(value))) if self.kind == "category" else float(value)
        if self.kind == "log":
            at = math.log10(at) if at > 0 else self.low - 1
        share = (at - self.low) / (self.high - self.low)
        return 1 - share if self.reversed else share

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Share and text of up to about `most` ticks."""
        if self.kind == "category":
            every = max(1, math.ceil(len(self.names) / most))
            return [(self.share(name), name) for name in self.names[::every]]
        if self.kind == "log":
            return [(self.share(value), text) for value, text in _powers(self.low, self.high, most)]
        step = self.step or nice_step(self.high - self.low, most)
        first = math.ceil(self.low / step - 1e-9)
        values = [step * at for at in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(self.share(value), self._text(value, step)) for value in values]

    def _text(self, value: float, step: float) -> str:
        if "%" in self.form:
            return f"{100 * value:.{max(0, -math.floor(math.log10(100 * step)))}f} %"
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        text = f"{value:.{decimals}f}" if 1e-4 < step < 1e6 else number(value)
        return "0" if value == 0 else text.replace("-", "−")


def scale(axis: Mapping[str, Any], values: Iterable[Any]) -> Scale:
    """The scale of a plotly axis for the values that are drawn along it."""
    known = [value for value in values if value is not None]
    kind = axis.get("type") or ("category" if any(isinstance(value, str) for value in known) else "linear")
    flipped = axis.get("autorange") == "reversed"
    if kind == "category":
        names = list(dict.fromkeys(map(str, known)))
        return Scale(kind, -0.5, max(len(names), 1) - 0.5, names, flipped)
    if kind == "log":
        known = [math.log10(value) for value in known if value > 0]
    low, high = axis["range"] if "range" in axis else _padded(known, axis.get("rangemode") == "tozero")
    step = axis.get("dtick", 0.0)
    whole = step if isinstance(step, int | float) and kind == "linear" else 0.0
    return Scale(kind, low, high, reversed=flipped, form=axis.get("tickformat", ""), step=whole)


def _padded(known: Sequence[float], to_zero: bool) -> tuple[float, float]:
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if to_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = _ROOM * (high - low) or abs(high) or 0.5
    return low - (0.0 if to_zero and low == 0 else room), high + room


def nice_step(span: float, most: int) -> float:
    """1, 2 or 5 times a power of ten, so that `span` has at most about `most` steps."""
    rough = max(span / most, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    return next((step * power for step in (1, 2, 5) if step * power >= rough * 0.999), 10 * power)


def whole_step(span: float, most: int) -> int:
    """The same for numbers of layers, heads and ranks: never a part of one."""
    return max(1, round(nice_step(span, most)))


def _powers(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Powers of ten; within two decades also 2 and 5, or every digit, as plain numbers."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    if high - low >= _SHORT:
        every = math.ceil(len(powers) / most)
        shown = [power for power in powers if low <= power <= high and power % every == 0]
        return [(10.0**power, "10" + str(power).translate(_SUPERSCRIPTS)) for power in shown]
    for digits in ((1, 2, 5), range(1, 10)):
        values = [digit * 10.0**power for power in powers for digit in digits]
        inside = [value for value in values if low <= math.log10(value) <= high]
        if len(inside) > 1:
            return [(value, number(value)) for value in inside]
    middle = 10 ** ((low + high) / 2)
    return [(middle, number(middle))]


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """plotly's settings of a log axis that shows these values: numbers also where it spans less than two decades."""
    known = [math.log10(value) for value in values if value and value > 0]
    short = not known or max(known) - min(known) < _SHORT
    # plotly puts the digits 2 and 5 in small type at "D2"; exponents of so short an axis would be unreadable there.
    return {"type": "log", "dtick": "D2" if short else 1, "exponentformat": "none" if short else "power"}
