"""The two consoles: results go to stdout, all else to stderr."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from .text import OBEYED, visible

_PIPED_WIDTH = 200  # wide enough that no table folds where there is no terminal to fit


class Console(RichConsole):
    """Takes every text for a text: no markup in it, and nothing that a terminal would obey."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, str):
            renderable = visible(renderable)
        elif isinstance(renderable, Text) and OBEYED.search(renderable.plain):
            renderable = renderable.blank_copy(visible(renderable.plain))
        return super().render(renderable, options)


def _console(stderr: bool) -> Console:
    def make(width: int | None) -> Console:
        return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)

    console = make(None)
    return console if console.is_terminal else make(_PIPED_WIDTH)


out, err = _console(stderr=False), _console(stderr=True)


def notices(texts: Iterable[str]) -> None:
    """Lines on stderr that begin with "note:"."""
    for text in texts:
        err.print(Text.assemble(("note: ", "cyan"), text), soft_wrap=True)
