"""The terminal: its two consoles, how long a transfer takes, notices, and the progress bar.

Names in a checkpoint are a stranger's. What a terminal would obey in them is shown as an escape sequence instead.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from ..progress import Standing
from ..report.words import size

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn, Task, TaskID

_PIPED_WIDTH = 200  # wide enough that no table folds where there is no terminal to fit
# Control characters (C0, DEL, C1), line separators, what turns the direction of writing, and lone surrogates.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text as it can be shown in one line: ESC becomes \\x1b. A byte of a name that is not UTF-8 reads \\xe9, too."""
    return OBEYED.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00 if "\udc80" <= character <= "\udcff" else ord(character)  # PEP 383
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{byte:04x}"


def settle_streams() -> None:
    """Characters that the encoding of stdout or stderr lacks are written as escape sequences, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _Console(Console):
    """Takes every text for a text: no markup in it, and nothing that a terminal would obey."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, str):
            renderable = visible(renderable)
        elif isinstance(renderable, Text) and OBEYED.search(renderable.plain):
            renderable = renderable.blank_copy(visible(renderable.plain))
        return super().render(renderable, options)


def _console(stderr: bool) -> Console:
    def make(width: int | None) -> Console:
        return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)

    console = make(None)
    return console if console.is_terminal else make(_PIPED_WIDTH)


out, err = _console(stderr=False), _console(stderr=True)


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


def standing(now: Standing) -> str:
    """Such as "8 processes, 37 of 160, 12.3 GB, 4 min left, slowest: process 5"."""
    parts = [f"{now.processes} processes", f"{now.done} of {now.total}", size(now.nbytes)]
    if now.seconds is not None:
        parts.append(f"{_seconds(now.seconds)} left")
    if now.slowest is not None:
        parts.append(f"slowest: process {now.slowest}")
    return ", ".join(parts)


@contextmanager
def progress(as_json: bool, quiet: bool) -> Iterator[_Progress]:
    """A bar on stderr while a verb runs, and its notices: no bar with --json or where stderr is not a terminal, neither
    with --quiet."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    meter = _Meter()
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               meter.column(), TextColumn("[dim]{task.fields[label]}"))  # fmt: skip
    with Bar(*columns, console=err, transient=True, disable=as_json or quiet or not err.is_terminal) as bar:
        yield _Progress(bar, not quiet, meter)


class _Meter:
    """Bytes that came over the network, and how many a second since the last look but a few."""

    def __init__(self) -> None:
        self.arrived: Callable[[], int] | None = None
        self.total = 0
        self.standing: Callable[[], str] = str
        self._looks: deque[tuple[float, int]] = deque(maxlen=50)

    def column(self) -> ProgressColumn:
        from rich.progress import ProgressColumn

        meter = self

        class Column(ProgressColumn):
            max_refresh = 0.1

            def render(self, task: Task) -> Text:
                return Text(meter.text(), style="cyan")

        return Column()

    def text(self) -> str:
        """How far several processes are, and what has come over the network; nothing where there is neither."""
        return "; ".join(filter(None, (self.standing(), self._traffic())))

    def _traffic(self) -> str:
        if self.arrived is None:
            return ""
        self._looks.append((monotonic(), self.arrived()))
        (then, before), (now, after) = self._looks[0], self._looks[-1]
        rate = f", {size((after - before) / (now - then))}/s" if now > then else ""
        return f"{size(after)} of {size(self.total)}{rate}"


class _Progress:
    """`progress.Progress` drawn by rich."""

    def __init__(self, bar: Bar, told: bool, meter: _Meter) -> None:
        self._bar, self._told, self._meter = bar, told, meter
        self._task: TaskID | None = None

    def start(self, stage: str, total: int, done: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(stage, total=total, completed=done, label="")

    def advance(self, label: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, advance=1, label=escape(label))

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        self._meter.arrived, self._meter.total = arrived, nbytes
        self.notice(f"reading {size(nbytes)} of {size(total)} over the network: {durations(nbytes)}")

    def together(self, look: Callable[[], Standing]) -> None:
        self._meter.standing = lambda: standing(look())

    def notice(self, text: str) -> None:
        if self._told:
            notices([text])


def notices(texts: Iterable[str]) -> None:
    """Lines on stderr that begin with "note:"."""
    for text in texts:
        err.print(Text.assemble(("note: ", "cyan"), text), soft_wrap=True)
