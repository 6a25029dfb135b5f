"""The progress bar of a terminal: one line at any width. What does not fit is left out, the least needed first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..progress import Standing
from ..report.words import size
from .console import err, notices
from .pace import Pace, durations
from .text import visible

_NARROWEST, _WIDEST = 6, 30  # columns of the bar itself
_OPENING = "Opening"  # the first stage: libraries and headers are read, and nothing can be counted yet


def clock(seconds: float) -> str:
    """3725 -> '1:02:05', 65 -> '1:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _count(pace: Pace) -> str:
    return f"{pace.done}/{pace.total}" if pace.total is not None else ""


def _left(pace: Pace) -> str:
    left = pace.left()
    return "" if left is None else f"{clock(left)} left"


def _elapsed(pace: Pace) -> str:
    return f"{clock(pace.elapsed)} so far"


def _rate(pace: Pace) -> str:
    rate = pace.rate()
    return "" if rate is None else f"{size(rate)}/s"


def _bytes(pace: Pace) -> str:
    return f"{size(pace.nbytes)} of {size(pace.expected)}" if pace.expected else ""


# What is told beside the bar, in the order in which it stands there; the number says what is left out first (largest).
PIECES: Sequence[tuple[int, Callable[[Pace], str]]] = ((0, _count), (1, _left), (3, _elapsed), (4, _bytes), (2, _rate))

# The same of several processes together.
TOGETHER: Sequence[tuple[int, Callable[[Standing], str]]] = (
    (0, lambda now: f"{now.done}/{now.total}"),
    (1, lambda now: "" if now.seconds is None else f"{clock(now.seconds)} left"),
    (2, lambda now: f"{now.processes} processes"),
    (4, lambda now: size(now.nbytes)),
    (3, lambda now: "" if now.slowest is None else f"slowest: process {now.slowest}"),
)


class _Line:
    """The stage, its bar and the pieces that fit into the width; in what is left, the step that was finished last."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        stage, pace, label, now = self._bar.stage, self._bar.pace, self._bar.label, self._bar.standing()
        pieces = [(rank, tell(pace)) for rank, tell in PIECES]
        if now is not None:
            pieces = [(rank, tell(now)) for rank, tell in TOGETHER]
        told = _fitting(pieces, options.max_width - len(stage) - _NARROWEST - 3)
        room = options.max_width - len(stage) - len(told) - 3
        width = min(_WIDEST, room)
        rest = label if room - width > len(label) else ""
        bar = ProgressBar(
            total=pace.total, completed=pace.done if now is None else now.done, width=width, pulse=pace.total is None
        )
        line = Table.grid(padding=(0, 1), pad_edge=False)
        for _ in range(4 if rest else 3):
            line.add_column(no_wrap=True, overflow="crop")
        cells = (Text(stage), bar, Text(told, style="cyan"), Text(rest, style="dim"))
        line.add_row(*cells[: 4 if rest else 3])
        yield line


def _fitting(pieces: Sequence[tuple[int, str]], room: int) -> str:
    """The pieces with something to say, joined, without those that find no room."""
    texts = [(rank, text) for rank, text in pieces if text]
    while texts and len(joined := "  ".join(text for _, text in texts)) > room:
        texts.remove(max(texts))
    return joined if texts else ""


def _alone() -> None:
    """There is one process."""


class Bar:
    """`progress.Progress`, drawn by rich; `notice` tells even where nothing is drawn."""

    def __init__(self, told: bool = True) -> None:
        self._told = told
        self._arrived: Callable[[], int] | None = None
        self._expected = 0
        self.standing: Callable[[], Standing | None] = _alone
        self.stage, self.label, self.pace = _OPENING, "", Pace(None, 0, None, 0)

    def line(self) -> _Line:
        """What is to be drawn again and again."""
        return _Line(self)

    def start(self, stage: str, total: int, done: int) -> None:
        """Another stage takes the place of the one before."""
        self.stage, self.label, self.standing = stage, "", _alone
        self.pace = Pace(total, done, self._arrived, self._expected)

    def advance(self, label: str, nbytes: int = 0) -> None:
        """One step of it is done."""
        self.label = visible(label)
        self.pace.step(nbytes)

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        """Bytes will come over the network."""
        self._arrived, self._expected = arrived, nbytes
        self.pace = Pace(self.pace.total, self.pace.done, arrived, nbytes)
        self.notice(f"reading {size(nbytes)} of {size(total)} over the network: {durations(nbytes)}")

    def together(self, look: Callable[[], Standing]) -> None:
        """What all processes have done takes the place of what has come in from them."""
        self.standing = look

    def notice(self, text: str) -> None:
        """A line above the bar."""
        if self._told:
            notices([text])


@contextmanager
def drawn(told: bool = True, shown: bool = True) -> Iterator[Bar]:
    """A bar on stderr, gone when the work ends; none where stderr is no terminal or it is not to be `shown`. `told`:
    whether notices are."""
    bar = Bar(told)
    if not (shown and err.is_terminal):
        yield bar
        return
    with Live(bar.line(), console=err, transient=True, refresh_per_second=10):
        yield bar
