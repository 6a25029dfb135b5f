"""Ctrl-C in the middle of a run."""

from __future__ import annotations

from ailora_tools.progress import Silent


class Interrupting(Silent):
    """Presses Ctrl-C after a number of modules."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, label: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
