"""How much memory each verb needs beside Python and torch: a model that tests hold against the peaks of processes.

What is in memory with one matrix W (m, n) at work: W as stored and the next one, the result of the one before, blocks
of rows in float64, and for routes by a Gram matrix some squares of the smaller side. The factors are measured (one
thread, x86-64, torch 2.13): what is stated is within a factor of 1.5 of the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..checkpoint.machine import share
from ..methods import METHODS
from ..targets.projections import Target

RUNTIME = 250_000_000  # resident bytes of Python with torch and this package


@dataclass(frozen=True)
class Need:
    """Bytes that a verb takes whatever it works on, and those of each matrix that is worked on at a time."""

    fixed: int
    each: int

    def total(self, at_once: int = 1) -> int:
        """With so many matrices at a time."""
        return self.fixed + at_once * self.each


@dataclass(frozen=True)
class _Model:
    """stored: times the bytes of W in its file. elements: bytes for each entry of W. block: for each entry of the first
    2^21, of which blocks of rows have no more. square: for each entry of a square of the smaller side; of a `partial`
    decomposition only where components are sought from below. lines: for each row and column."""

    fixed: int
    block: float = 0
    stored: float = 0
    elements: float = 0
    square: float = 0
    lines: float = 0
    partial: bool = False

    def of(self, target: Target, rule: str) -> int:
        (m, n), nbytes = target.shape, target.stored.nbytes
        plain = 4 * m * n if target.quantised else 0  # beside what is stored
        square = 0 if self.partial and not rule.startswith("minor") else self.square
        count = self.stored * (nbytes + plain) + self.block * min(m * n, _BLOCK) + self.elements * m * n
        return int(count + square * min(m, n) ** 2 + self.lines * (m + n))


_MB = 1_000_000
_BLOCK = 1 << 21  # as in linalg
_MODELS: Mapping[str, _Model] = {
    "init": _Model(22 * _MB, block=26, stored=3, elements=3, square=10, partial=True),
    "init --no-base": _Model(22 * _MB, block=24, stored=2, elements=3, square=10, partial=True),
    "analyze": _Model(44 * _MB, block=32, stored=2, elements=1, square=16),
    "analyze --against": _Model(50 * _MB, block=32, stored=2, elements=13, square=40),
    "verify": _Model(12 * _MB, block=8, stored=2, elements=4),
    "verify of --no-base": _Model(12 * _MB, block=16, stored=2, elements=10),
    "merge": _Model(12 * _MB, block=16, stored=3, elements=14),
    "convert": _Model(10 * _MB, lines=1800),
    "extract": _Model(12 * _MB, block=32, stored=4, elements=8),
}
VERBS = tuple(_MODELS)


def need(verb: str, targets: Iterable[Target], rules: Mapping[str, str] = METHODS["ailora"].rules) -> Need:
    """What `verb`, one of `VERBS`, takes for these matrices; `rules` are those of the method, by role."""
    model = _MODELS[verb]
    sizes = (model.of(target, rules.get(target.role, "minor")) for target in targets)
    return Need(model.fixed, max(sizes, default=0))


def needs(targets: Iterable[Target]) -> dict[str, Need]:
    """Of every verb, for `inspect`."""
    found = tuple(targets)
    return {verb: need(verb, found) for verb in VERBS}


def at_once(need: Need, memory: int | None, notice: Callable[[str], None]) -> int:
    """How many matrices to work on at a time here, in `memory` bytes (None: in what is free); `notice` tells if that is
    less than one takes."""
    own = share(memory)
    if own.memory < need.total():
        notice(f"the largest matrix takes about {_gb(need.total())}, and {_gb(own.memory)} are to be used")
    return own.at_once(need.fixed, need.each)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2g} GB"
