"""`report`: the page again, from an analysis that is already there."""

from __future__ import annotations

import os
from pathlib import Path

from ..checkpoint.source import user_path
from ..errors import CheckpointError, OutputError
from ..output.analysis import read_analysis
from ..output.destination import destination
from ..output.names import REPORT
from ..output.spans import write_text
from ..report.page import render

_MARK, _HEAD = b'<meta name="generator" content="ailora-tools">', 4096


def render_report(analysis: str | Path, output: str | Path | None = None) -> Path:
    """Write report.html from `analysis`, an analysis.json or its folder; `output` defaults to beside it.

    Raises CheckpointError if it is not an analysis of this version, OutputError if the page cannot be written, or would
    replace another file than such a page.

    >>> render_report("analysis").name
    'report.html'
    """
    source = user_path(analysis, "ANALYSIS")
    beside = (source if source.is_dir() else source.parent) / REPORT
    named = beside if output is None else output
    destination(named)  # which can be used at all
    target = Path(named).expanduser()
    try:
        _require_ours(target)
        page = _rendered(source)
        _write(target, page)
    except OSError as error:
        raise OutputError(f"{target}: cannot write: {error.strerror}.", "Choose another -o.") from None
    return target


def _require_ours(target: Path) -> None:
    """What is replaced must be a page of ours: its head says so."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_file():
        with open(target, "rb") as file:
            if _MARK in file.read(_HEAD):
                return
    raise OutputError(
        f"{target}: is not a report that ailora-tools wrote, so it is not replaced.",
        "Remove it yourself, or choose another -o.",
    )


def _write(target: Path, page: str) -> None:
    """Under another name first, so that an interrupted run leaves the old page whole."""
    fresh = target.with_name(f".{REPORT}.{os.getpid()}.new")
    try:
        write_text(fresh, page)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def _rendered(source: Path) -> str:
    try:
        return render(read_analysis(source))
    except (ArithmeticError, ValueError) as error:  # each number can be, but not what is computed from them
        raise CheckpointError(f"{source}: its numbers cannot be drawn ({error}).", "Run `analyze` again.") from None
