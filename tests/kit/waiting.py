"""Waiting for events, not for clocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SAFETY = 300  # seconds after which something is broken, however busy the machine is


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition()` holds; TimeoutError if it never does."""
    end = time.monotonic() + SAFETY
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what the test waits for did not happen")
        time.sleep(0.005)


class Gate:
    """Holds whoever passes until it is opened; `holding` counts those it holds now."""

    def __init__(self) -> None:
        self.holding = 0
        self._lock, self._opened = threading.Lock(), threading.Event()

    def open(self) -> None:
        """Let everybody go, now and from now on."""
        self._opened.set()

    def wait(self) -> None:
        """Stay until the gate is opened."""
        with self._lock:
            self.holding += 1
        self._opened.wait(SAFETY)
        with self._lock:
            self.holding -= 1
