"""`report`: the page again from an analysis that is already there, several compared, or a list of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.source import user_path
from ..errors import CheckpointError, OutputError
from ..output.analysis import read_analysis
from ..output.destination import destination
from ..output.names import ANALYSIS, COMPARISON, INDEX, REPORT
from ..output.spans import write_text
from ..report.compare import render_comparison
from ..report.listing import render_listing
from ..report.page import render

_MARK, _HEAD = b'<meta name="generator" content="ailora-tools">', 4096


def render_report(analysis: str | Path | Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write a page and return its path; `output` defaults to a name beside what is read.

    analysis: an analysis.json or its folder (report.html), a folder of such folders (index.html, which lists them), or
    several analyses (comparison.html in the folder they share).

    Raises CheckpointError if it is not an analysis of this version, OutputError if the page cannot be written, or would
    replace another file than such a page.

    >>> render_report("analysis").name
    'report.html'
    """
    several = [analysis] if isinstance(analysis, str | Path) else list(analysis)
    sources = [user_path(one, "ANALYSIS") for one in several]
    if not sources:
        raise CheckpointError("No analysis is named.", "Give an analysis.json or its folder.")
    named = _beside(sources) if output is None else output
    destination(named)  # which can be used at all
    target = Path(named).expanduser()
    try:
        _require_ours(target)
        page = _rendered(sources, target)
        _write(target, page)
    except OSError as error:
        raise OutputError(f"{target}: cannot write: {error.strerror}.", "Choose another -o.") from None
    return target


def _beside(sources: Sequence[Path]) -> Path:
    folders = [source if source.is_dir() else source.parent for source in sources]
    if len(sources) > 1:
        return Path(os.path.commonpath([folder.absolute() for folder in folders])) / COMPARISON
    return folders[0] / (INDEX if _lists(sources[0]) else REPORT)


def _lists(source: Path) -> list[Path]:
    """The analyses in the folders of a folder that holds none itself."""
    if not source.is_dir() or (source / ANALYSIS).exists():
        return []
    return sorted(source.glob(f"*/{ANALYSIS}")) + sorted(source.glob(f"*/*/{ANALYSIS}"))


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


def _rendered(sources: Sequence[Path], target: Path) -> str:
    try:
        if len(sources) > 1:
            return render_comparison([read_analysis(source) for source in sources])
        if listed := _lists(sources[0]):
            return render_listing(sources[0].name or str(sources[0]), [_listed(path, target) for path in listed])
        return render(read_analysis(sources[0]))
    except (ArithmeticError, ValueError) as error:  # each number can be, but not what is computed from them
        named = ", ".join(map(str, sources))
        raise CheckpointError(f"{named}: its numbers cannot be drawn ({error}).", "Run `analyze` again.") from None


def _listed(path: Path, target: Path) -> tuple[str, dict[str, Any]]:
    """Where the report of an analysis lies as seen from the page, and the analysis."""
    page = path.with_name(REPORT)
    address = os.path.relpath(page if page.exists() else path, target.absolute().parent)
    return address.replace(os.sep, "/"), read_analysis(path)
