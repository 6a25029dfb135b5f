"""`ailora-tools verify`: its options and its screen."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..errors import VerificationError
from ..team.place import read_place
from ..team.team import farewell
from .command import Command, option
from .options import FOLDER, MODEL, PLACE, message_options, reading_options
from .screens import print_json, table
from .terminal import out, progress

if TYPE_CHECKING:
    from ..verbs.verify import Verification

_EXAMPLES = (
    "verify model-ailora-r8",
    "verify model-ailora-r8 --source Qwen/Qwen2.5-0.5B",
    "verify merged --base path/to/model --adapter plain-lora",
    "verify plain-lora --init model-ailora-r8 --trained output/checkpoint-100",
    "verify plain-lora --base Qwen/Qwen2.5-0.5B",
)
_AGAINST = "What to check it against"


@click.command(cls=Command, together=True, examples=_EXAMPLES)
@click.argument("folder", metavar="DIR", type=PLACE)
@option(
    "--source",
    group=_AGAINST,
    metavar="MODEL",
    type=MODEL,
    help="Of a folder of init, the original: a folder or a Hub id.  [default: the folder that the manifest names]",
)
@option(
    "--base",
    group=_AGAINST,
    metavar="MODEL",
    type=MODEL,
    help="Of a merged model or an adapter, the base: a folder or a Hub id.  [default: the folder that DIR names]",
)
@option(
    "--adapter",
    group=_AGAINST,
    metavar="ADAPTER",
    type=MODEL,
    help="Of a merged model, the adapter that is in it.  [default: the folder that DIR names]",
)
@option(
    "--init",
    group=_AGAINST,
    metavar="INIT",
    type=FOLDER,
    help="Of a converted adapter, the folder that init wrote, or ORG/NAME that it was pushed to.  [default: the folder "
    "that DIR names]",
)
@option(
    "--trained",
    group=_AGAINST,
    metavar="ADAPTER",
    type=MODEL,
    help="Of a converted adapter, the trained one.  [default: the folder that DIR names]",
)
@reading_options("MODEL")
@message_options
def verify(folder: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check that DIR, a folder or a Hub id, holds what it should.

    A folder of init: base and adapter still make the original model. A merged model: it is the base with the adapter
    in it, and differs from it. A converted adapter: it is what training changed. Any adapter: every key of it binds to
    a tensor of the base. Exit code 3 if it does not hold.

    What is proven is integrity, and with the originals given that all compute what they do; who made DIR is not.
    """
    with progress(as_json, quiet) as bar:
        from ..verbs.verify import verify as check  # within: it may take a second, and something is to be seen

        result = check(folder, progress=bar, **options)
    if not read_place().leads:
        return
    print_json(result.to_json()) if as_json else _show(result)
    if not result.holds:
        farewell(VerificationError(f"{folder} does not hold."))  # being started anew would not help
        sys.exit(VerificationError.exit_code)


_ADVICE = {
    "start": "Restore the folder from a copy, or run init again: the same seed gives the same bytes.",
    "merged": "Merge again: ailora-tools merge BASE ADAPTER -o OUT changes what the adapter is for, and nothing else.",
    "converted": "Convert again: ailora-tools convert TRAINED --init DIR -o OUT.",
    "adapter": "Give the base that it was trained on, or save the adapter again with all of its modules.",
}
_BASIS = {"hashes alone": "from hashes alone: no source at hand", "itself alone": "by itself alone: no base given"}


def _show(result: Verification) -> None:
    """One row a check, then the verdict and what it rests on."""
    checks = table("", "check", "found")
    for check in result.checks:
        sign = Text("✔", style="green") if check.holds else Text("✘", style="bold red")
        checks.add_row(sign, check.name, Text(check.detail, overflow="fold"))
    out.print(checks)
    against = (
        f"compared with the source at {result.source}" if result.what == "start" else f"compared with {result.source}"
    )
    basis = against if result.source else _BASIS[result.basis]
    verdict = Text("holds", style="bold green") if result.holds else Text("does not hold", style="bold red")
    out.print(Text(f"{result.folder} ") + verdict + Text(f" ({basis})."), soft_wrap=True)
    if not result.holds:
        out.print(_ADVICE[result.what], soft_wrap=True)
