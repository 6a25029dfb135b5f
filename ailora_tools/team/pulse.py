"""Signs of life: each process says every second that it runs and how far it is, and listens to the others.

The clocks of machines differ, and a process may itself have been stopped for a while, so that nobody compares times:
silence is counted in looks, a second apart, in which another process said nothing new.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import Any, TypeVar

from ..errors import TeamError
from .board import Board

BEAT = 1.0  # seconds between two signs of life
HUNG = 60.0  # seconds without one after which a process counts as hung
LATE = 300.0  # the same for one that has not been heard of at all: it may still be starting
_LOOK = 0.1  # seconds between two looks for something that another process does

Seen = TypeVar("Seen")


@dataclass
class Sign:
    """The last sign of life of one process, and at which look of this one it was new."""

    said: Any
    look: int


class Pulse:
    """Runs in a thread of its own between `start` and `stop`; what it has heard may be read from any thread."""

    def __init__(self, board: Board, rank: int, size: int, about: dict[str, Any]) -> None:
        self._board, self._rank = board, rank
        self._heard = range(1, size) if rank == 0 else range(1)
        self._said: dict[str, Any] = {**about, "beat": 0, "done": 0, "bytes": 0, "cost": 0.0}
        self._looks = 0
        self.signs: dict[int, Sign] = {}
        self.abort: dict[str, Any] | None = None
        self.over: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Say the first word and go on saying it."""
        self._thread.start()

    def stop(self) -> None:
        """Fall silent."""
        self._stop.set()
        self._thread.join()

    def done(self, nbytes: int, cost: float) -> None:
        """One more item is done, which took so many bytes to read."""
        self._said["done"] += 1
        self._said["bytes"] += nbytes
        self._said["cost"] += cost

    def said(self) -> dict[int, dict[str, Any]]:
        """What this process and those it listens to said last, by rank."""
        return {self._rank: dict(self._said), **{rank: sign.said for rank, sign in list(self.signs.items())}}

    def silence(self, rank: int) -> float:
        """Seconds since the last sign of life of another process, negative while it may still be starting."""
        sign = self.signs.get(rank)
        return BEAT * (self._looks - sign.look) if sign else BEAT * self._looks - (LATE - HUNG)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT if self._said["beat"] else 0):
            try:
                self._say()
                self._listen()
            except TeamError:
                self._orphaned()

    def _say(self) -> None:
        self._said["beat"] += 1
        self._board.post(f"beat/{self._rank}", self._said)

    def _listen(self) -> None:
        over = self._board.read("over")  # said last, so that whoever sees it sees also what came before
        self.abort = self._board.read("abort")
        self.over = over
        for rank in self._heard:
            said = self._board.read(f"beat/{rank}")
            if said is not None and (rank not in self.signs or self.signs[rank].said != said):
                self.signs[rank] = Sign(said, self._looks)
        self._looks += 1

    def _orphaned(self) -> None:
        """The agent that started this process, or the first process, is gone, and with it the store: end as the agent
        would have ended this one. What is finished is on disk."""
        if not self._stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            self._stop.set()


def awaited(look: Callable[[], Seen | None]) -> Seen:
    """What `look` finds, as soon as it finds something that counts as true."""
    while not (seen := look()):
        sleep(_LOOK)
    return seen
