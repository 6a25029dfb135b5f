"""What a verb tells while it works; the console draws it, scripts ignore it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Called from the thread that runs the verb."""

    def start(self, stage: str, total: int, done: int, in_bytes: bool = False) -> None:
        """A stage of `total` steps, or bytes, begins, `done` of them already behind it."""
        ...

    def advance(self, label: str, steps: int = 1) -> None:
        """Steps of the stage are done."""
        ...

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        """`nbytes` of a source of `total` bytes will come over the network; `arrived` counts them."""
        ...

    def notice(self, text: str) -> None:
        """Something the user should know although the work goes on."""
        ...


class Silent:
    """Says nothing."""

    def start(self, stage: str, total: int, done: int, in_bytes: bool = False) -> None:
        pass

    def advance(self, label: str, steps: int = 1) -> None:
        pass

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        pass

    def notice(self, text: str) -> None:
        pass
