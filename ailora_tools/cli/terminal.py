"""What all commands tell while they work: a bar, notices, with --verbose every step, with --log all of it in a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.text import Text

from ..display.console import err as err
from ..display.console import notices as notices
from ..display.console import out as out
from ..display.journal import Journal, Several
from ..display.pace import durations as durations
from ..display.text import OBEYED as OBEYED
from ..display.text import settle_streams as settle_streams
from ..display.text import visible as visible
from ..progress import Progress
from .log import is_verbose, log_of


@contextmanager
def progress(as_json: bool, quiet: bool) -> Iterator[Progress]:
    """A bar on stderr while a verb runs, and its notices: no bar with --json or where stderr is not a terminal, neither
    with --quiet."""
    from ..display.bar import drawn

    context = click.get_current_context()
    log = log_of(context)
    with drawn(told=not quiet, shown=not (as_json or quiet)) as bar:
        listeners: list[Progress] = [bar]
        if is_verbose(context) and not quiet:
            listeners.append(Journal(_line, notes=False))
        if log is not None:
            listeners.append(Journal(log.write))
        yield Several(listeners) if len(listeners) > 1 else bar


def _line(text: str) -> None:
    err.print(Text(text, style="dim"), soft_wrap=True)
