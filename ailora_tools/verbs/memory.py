"""How much memory each verb needs beside Python and torch: a bound that tests hold against the peaks of processes.

What is in memory with one matrix W (m, n) at work: W as stored and the next one, copies in the number type of the
arithmetic, the result of the one before, and for routes by a Gram matrix some squares of the smaller side in float64.
The factors are measured (one thread, x86-64, torch 2.13) and rounded up: within a factor of 1.5 of the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..checkpoint.machine import share
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
    """stored: times the bytes of W in its file. elements: bytes for each entry of W. square: bytes for each entry of a
    square of its smaller side. lines: bytes for each row and column."""

    fixed: int
    stored: float = 0
    elements: float = 0
    square: float = 0
    lines: float = 0

    def of(self, target: Target) -> int:
        (m, n), nbytes = target.shape, target.stored.nbytes
        plain = 4 * m * n if target.quantised else 0  # beside what is stored
        count = self.stored * (nbytes + plain) + self.elements * m * n
        return int(count + self.square * min(m, n) ** 2 + self.lines * (m + n))


_MB = 1_000_000
_MODELS: Mapping[str, _Model] = {
    "init": _Model(60 * _MB, stored=4, elements=8, square=10),
    "init --no-base": _Model(50 * _MB, stored=3, elements=6, square=10),
    "analyze": _Model(40 * _MB, stored=2, elements=1, square=20),
    "analyze --against": _Model(40 * _MB, stored=2, elements=40, square=40),
    "verify": _Model(40 * _MB, stored=3, elements=8),
    "verify of --no-base": _Model(40 * _MB, stored=3, elements=20),
    "merge": _Model(60 * _MB, stored=4, elements=16),
    "convert": _Model(16 * _MB, lines=1500),
}
VERBS = tuple(_MODELS)


def need(verb: str, targets: Iterable[Target]) -> Need:
    """What `verb`, one of `VERBS`, takes for these matrices."""
    model = _MODELS[verb]
    return Need(model.fixed, max((model.of(target) for target in targets), default=0))


def needs(targets: Iterable[Target]) -> dict[str, Need]:
    """Of every verb, for `inspect`."""
    found = tuple(targets)
    return {verb: need(verb, found) for verb in VERBS}


def at_once(
    verb: str, targets: Iterable[Target], memory: int | None, notice: Callable[[str], None] = lambda text: None
) -> int:
    """How many matrices `verb` works on at a time here, in `memory` bytes (None: in what is free); `notice` tells if
    that is less than one takes."""
    own, wanted = share(memory), need(verb, targets)
    if own.memory < wanted.total():
        notice(f"{verb} takes about {_gb(wanted.total())} for its largest matrix, and {_gb(own.memory)} are to be used")
    return own.at_once(wanted.fixed, wanted.each)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2g} GB"
