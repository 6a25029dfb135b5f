"""How fast a stage goes and how long it still takes: from steps, and from bytes where they are known."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

_LOOKS = 50  # at ten a second: a rate over the last five seconds


class Pace:
    """Steps of a stage, `done` of them before it began here; and bytes, counted as they come over the network
    (`arrived`) or with each finished step."""

    def __init__(self, total: int | None, done: int, arrived: Callable[[], int] | None, expected: int) -> None:
        self.total, self.done = total, done
        self._began, self._before = monotonic(), done
        self._arrived, self._expected = arrived, expected
        self._local = 0
        self._looks: deque[tuple[float, int]] = deque(maxlen=_LOOKS)

    def step(self, nbytes: int) -> None:
        """One step more, which took `nbytes` from a disk here."""
        self.done += 1
        self._local += nbytes

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began here."""
        return monotonic() - self._began

    @property
    def expected(self) -> int:
        """Bytes that come over the network in all; 0 if none do."""
        return self._expected if self._arrived is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes that came so far."""
        return self._local if self._arrived is None else self._arrived()

    def rate(self) -> float | None:
        """Bytes a second: over the network those of the last seconds, else the mean; None as long as none came."""
        if self._arrived is None:
            return self._local / self.elapsed if self._local and self.elapsed else None
        self._looks.append((monotonic(), self._arrived()))
        (then, before), (now, after) = self._looks[0], self._looks[-1]
        return (after - before) / (now - then) if now > then and after > before else None

    def left(self) -> float | None:
        """Seconds: the longer of what the steps and what the bytes say; None as long as neither says anything."""
        known = [seconds for seconds in (self._by_steps(), self._by_bytes()) if seconds is not None]
        return max(known, default=None)

    def _by_steps(self) -> float | None:
        made = self.done - self._before
        return None if self.total is None or not made else (self.total - self.done) * self.elapsed / made

    def _by_bytes(self) -> float | None:
        rate = self.rate() if self.expected else None
        return None if rate is None else max(self.expected - self.nbytes, 0) / rate


def durations(nbytes: int) -> str:
    """How long that many bytes take at two usual speeds."""
    slow, fast = (nbytes * 8 / speed for speed in (1e8, 1e9))
    return f"about {_seconds(slow)} at 100 Mbit/s, {_seconds(fast)} at 1 Gbit/s"


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.2g} s"
        if seconds < 99.5
        else f"{seconds / 60:.0f} min"
        if seconds < 5970
        else f"{seconds / 3600:.1f} h"
    )
