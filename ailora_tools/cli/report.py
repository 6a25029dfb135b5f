"""`ailora-tools report`: its options; its screen is the path of the page."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from .command import Command
from .options import FOLDER, message_options, output_option
from .screens import print_json
from .terminal import out

_EXAMPLES = ("report reports/model/analysis.json", "report reports/small reports/large", "report reports")


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("analysis", metavar="ANALYSIS.json...", type=FOLDER, nargs=-1, required=True)
@output_option("FILE", "File to write.  [default: beside what is read]")
@message_options
def report(analysis: tuple[Path, ...], output: Path | None, as_json: bool, quiet: bool) -> None:
    """Write report.html again from what `analyze` measured.

    Several analyses are compared on one page, comparison.html; a folder of reports gets index.html, which lists them.
    """
    from ..verbs.report import render_report

    written = render_report(analysis, output)
    if as_json:
        print_json({"report": str(written)})
    else:
        out.print(Text(str(written)), soft_wrap=True)
