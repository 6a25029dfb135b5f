"""Progress in a notebook, by tqdm, which draws there with widgets or without; and whether this is one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..progress import Standing
from ..report.words import size
from .pace import durations
from .text import visible


def in_notebook() -> bool:
    """Whether the code runs in a kernel: IPython in a terminal is a terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class Strip:
    """`progress.Progress`, a tqdm bar a stage."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, stage: str, total: int, done: int) -> None:
        """Another stage takes the place of the one before."""
        self.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm says that it could draw nicer with ipywidgets
            from tqdm.auto import tqdm  # type: ignore[import-untyped]

            self._bar = tqdm(total=total, initial=done, desc=stage, leave=False, file=sys.stdout)

    def advance(self, label: str, nbytes: int = 0) -> None:
        """One step of it is done."""
        if self._bar is not None:
            self._bar.set_postfix_str(visible(label), refresh=False)
            self._bar.update(1)

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        """Said once: tqdm counts the steps."""
        self.notice(f"reading {size(nbytes)} of {size(total)} over the network: {durations(nbytes)}")

    def together(self, look: Callable[[], Standing]) -> None:
        """A notebook is one process."""

    def notice(self, text: str) -> None:
        """A line of the cell's output."""
        print(f"note: {visible(text)}")

    def close(self) -> None:
        """The bar goes."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def strip() -> Iterator[Strip]:
    """A bar that goes when the work ends."""
    made = Strip()
    try:
        yield made
    finally:
        made.close()
