"""`report`: the page again, from an analysis that is already there."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, OutputError
from ..output.analysis import read_analysis
from ..output.names import REPORT
from ..report.page import render


def render_report(analysis: str | Path, output: str | Path | None = None) -> Path:
    """Write report.html from `analysis`, an analysis.json or its folder; `output` defaults to beside it.

    Raises CheckpointError if it is not an analysis of this version, OutputError if the page cannot be written.
    """
    source = Path(analysis).expanduser()
    target = Path(output or (source if source.is_dir() else source.parent) / REPORT).expanduser()
    try:
        page = render(read_analysis(source))
    except (ArithmeticError, ValueError) as error:  # each number can be, but not what is computed from them
        raise CheckpointError(f"{source}: its numbers cannot be drawn ({error}).", "Run `analyze` again.") from None
    fresh = target.with_name(f".{target.name}.new")
    try:
        fresh.write_text(page, encoding="utf-8")
        fresh.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot write: {error.strerror}.", "Choose another -o.") from None
    return target
