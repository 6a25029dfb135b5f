"""--verbose and --log FILE: every step of a run on the screen, and all that it told, with times, in a file.

Both leave what they were given in the `meta` of the context: no verb has to hand it on.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TextIO

import click

from ..display.text import visible
from ..team.place import read_place

_LOG, _VERBOSE = "ailora_tools.log", "ailora_tools.verbose"


class Log:
    """A file to which lines with a time are added; a run begins with its command line."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """One line, on disk at once: a run that is killed leaves what it told."""
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(text)}\n")
        self._file.flush()


def open_log(context: click.Context, param: click.Parameter, path: Path | None) -> None:
    """The callback of the option. An old log is added to, never replaced; of several processes the first one keeps
    it."""
    if path is None or context.resilient_parsing or not read_place().leads:
        return
    try:
        file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed with the context
    except OSError as error:
        raise click.BadParameter(f"{path}: cannot be written: {error.strerror}.", context, param) from None
    context.call_on_close(file.close)
    log = context.meta[_LOG] = Log(file)
    log.write(f"ailora-tools {shlex.join(sys.argv[1:])}")


def set_verbose(context: click.Context, param: click.Parameter, value: bool) -> None:
    """The callback of --verbose."""
    context.meta[_VERBOSE] = value


def is_verbose(context: click.Context) -> bool:
    """Whether every step is to be told."""
    return bool(context.meta.get(_VERBOSE))


def log_of(context: click.Context) -> Log | None:
    """That of the current command; None without --log."""
    return context.meta.get(_LOG)
