"""Numbers and lists as a sentence needs them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from itertools import groupby
from statistics import median

_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def number(value: float) -> str:
    """Three significant digits; whole numbers whole; small and large ones with an exponent."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}"
        return f"{value:.0f}" if "e" in text else text
    return f"{value:.2e}"


def size(nbytes: float) -> str:
    """1_234_567_890 -> '1.23 GB' (GB = 10^9 bytes)."""
    unit, name = next(((unit, name) for unit, name in _SIZES if nbytes >= unit), (1, "bytes"))
    return f"{nbytes / unit:.3g} {name}" if unit > 1 else f"{int(nbytes)} bytes"


def percent(share: float) -> str:
    """0.1234 -> '12.3 %'; below a tenth of a percent with an exponent."""
    return f"{number(100 * share)} %"


def spread(values: Iterable[float], *, shares: bool = False) -> str:
    """'median (least to greatest)'; one number where all are equal."""
    known = sorted(values)
    write = percent if shares else number
    if write(known[0]) == write(known[-1]):
        return write(known[0])
    return f"{write(median(known))} ({write(known[0])} to {write(known[-1])})"


def ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'."""
    runs = []
    for _, members in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [value for _, value in members]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(runs)


def typeset(text: str) -> str:
    """Plain text as HTML: everything escaped, W^Q with a real superscript, negative numbers with a real minus, powers
    of ten written out, and code between backticks."""
    html = raised(escape(text))
    html = re.sub(r"(?<=\d)e([+-])0?(\d+)\b", lambda found: f" × 10<sup>{found[1].strip('+')}{found[2]}</sup>", html)
    html = re.sub(r"(?<![\w.)])-(?=\d)", "−", html)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html)


def raised(html: str) -> str:
    """Superscripts and subscripts of the formulas in HTML: W^Q, W^gate, ‖W‖_F."""
    html = re.sub(r"W\^([QKVO]\b|[a-z_]\w+)", r"W<sup>\1</sup>", html)
    return html.replace("‖_F", "‖<sub>F</sub>")
