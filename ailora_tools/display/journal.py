"""What a verb tells, line by line: for `--verbose`, for a log file, and for several listeners at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from ..progress import Progress, Standing
from ..report.words import size
from .text import visible


class Journal:
    """`progress.Progress` as lines for `write`: every stage, every step with its seconds, and with `notes` notices."""

    def __init__(self, write: Callable[[str], None], notes: bool = True) -> None:
        self._write, self._notes = write, notes
        self._stage, self._total, self._done, self._since = "", 0, 0, monotonic()

    def start(self, stage: str, total: int, done: int) -> None:
        """The stage, and what an interrupted run did of it."""
        before = f", {done} of them before" if done else ""
        self._write(f"{stage}: {total} step{'' if total == 1 else 's'}{before}")
        self._stage, self._total, self._done, self._since = stage, total, done, monotonic()

    def advance(self, label: str, nbytes: int = 0) -> None:
        """One line a step. With several in flight, the seconds are those since the step that was finished before."""
        now, self._since, then = monotonic(), monotonic(), self._since
        self._done += 1
        of = f", {size(nbytes)}" if nbytes else ""
        self._write(f"{self._stage} {self._done}/{self._total}: {visible(label)} after {now - then:.2f} s{of}")

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        """How much will come over the network."""
        self._write(f"reading {size(nbytes)} of {size(total)} over the network")

    def together(self, look: Callable[[], Standing]) -> None:
        """How many there are; their steps follow as they come in."""
        self._write(f"{look().processes} processes")

    def notice(self, text: str) -> None:
        """As everywhere, behind "note:"."""
        if self._notes:
            self._write(f"note: {visible(text)}")


class Several:
    """`progress.Progress` for several listeners."""

    def __init__(self, listeners: Sequence[Progress]) -> None:
        self._listeners = listeners

    def start(self, stage: str, total: int, done: int) -> None:
        """To each."""
        for listener in self._listeners:
            listener.start(stage, total, done)

    def advance(self, label: str, nbytes: int = 0) -> None:
        """To each."""
        for listener in self._listeners:
            listener.advance(label, nbytes)

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        """To each."""
        for listener in self._listeners:
            listener.reading(arrived, nbytes, total)

    def together(self, look: Callable[[], Standing]) -> None:
        """To each."""
        for listener in self._listeners:
            listener.together(look)

    def notice(self, text: str) -> None:
        """To each."""
        for listener in self._listeners:
            listener.notice(text)
