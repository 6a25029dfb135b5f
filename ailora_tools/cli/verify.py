"""`ailora-tools verify`: its options and its screen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..errors import VerificationError
from .command import Command, option
from .options import FOLDER, MODEL, READING, message_options, reading_options
from .screens import print_json, table
from .terminal import out, progress

if TYPE_CHECKING:
    from ..verbs.verify import Verification

_EXAMPLES = ("verify model-ailora-r8", "verify model-ailora-r8 --source Qwen/Qwen2.5-0.5B")


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("folder", metavar="DIR", type=FOLDER)
@option(
    "--source",
    group=READING,
    metavar="MODEL",
    type=MODEL,
    help="The original model, a folder or a Hub id.  [default: the folder that the manifest names]",
)
@reading_options("MODEL")
@message_options
def verify(folder: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check that base and adapter in DIR still make the original model.

    Exit code 3 if they do not. Without the original at hand the hashes of the manifest decide. What is proven is
    integrity, and with the original that both compute what it does; who made the folder is not.
    """
    with progress(as_json, quiet) as bar:
        from ..verbs.verify import verify as check  # within: it may take a second, and something is to be seen

        result = check(folder, progress=bar, **options)
    print_json(result.to_json()) if as_json else _show(result)
    sys.exit(0 if result.holds else VerificationError.exit_code)


def _show(result: Verification) -> None:
    """One row a check, then the verdict and what it rests on."""
    checks = table("", "check", "found")
    for check in result.checks:
        sign = Text("✔", style="green") if check.holds else Text("✘", style="bold red")
        checks.add_row(sign, check.name, Text(check.detail, overflow="fold"))
    out.print(checks)
    basis = f"compared with the source at {result.source}" if result.source else "from hashes alone: no source at hand"
    verdict = Text("holds", style="bold green") if result.holds else Text("does not hold", style="bold red")
    out.print(Text(f"{result.folder} ") + verdict + Text(f" ({basis})."), soft_wrap=True)
    if not result.holds:
        out.print("Restore the folder from a copy, or run init again: the same seed gives the same bytes.")
