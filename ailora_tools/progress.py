"""What a verb tells while it works; the console draws it, scripts ignore it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Standing:
    """How far several processes are with one list: items done of `total`, bytes read for them, seconds that the rest
    takes at this pace (None: not known yet), and which process has done least of the work (None: all alike)."""

    processes: int
    done: int
    total: int
    nbytes: int
    seconds: float | None
    slowest: int | None


class Progress(Protocol):
    """Called from the thread that runs the verb."""

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage of `total` steps begins, `done` of them already behind it."""
        ...

    def advance(self, label: str, nbytes: int = 0) -> None:
        """One step of the stage is done; `nbytes` were read or written for it, if that is known."""
        ...

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        """`nbytes` of a source of `total` bytes will come over the network; `arrived` counts them."""
        ...

    def together(self, look: Callable[[], Standing]) -> None:
        """Several processes work on the stage; `look` tells, at any time and in any thread, how far all of them are."""
        ...

    def notice(self, text: str) -> None:
        """Something the user should know although the work goes on."""
        ...


class Silent:
    """Says nothing."""

    def start(self, stage: str, total: int, done: int) -> None:
        pass

    def advance(self, label: str, nbytes: int = 0) -> None:
        pass

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        pass

    def together(self, look: Callable[[], Standing]) -> None:
        pass

    def notice(self, text: str) -> None:
        pass


def heard(progress: Progress | bool | None) -> Progress:
    """The listener of a verb: silence unless one was given. For True, `display.shown` has put one there before."""
    return Silent() if progress is None or isinstance(progress, bool) else progress
