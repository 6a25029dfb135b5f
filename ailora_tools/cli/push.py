"""`ailora-tools push`: its options and its screen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..report.words import size
from .command import Command, option
from .options import FOLDER, RUN, message_options
from .screens import print_json, show_error
from .terminal import out, progress

if TYPE_CHECKING:
    from ..verbs.push import Push

_HUB = "On the Hub"
_INTERRUPTED = "What has arrived is not sent again: run the same command to go on."
_EXAMPLES = (
    "push model-ailora-r8 org/model-ailora-r8 --dry-run",
    "push plain-lora org/model-lora --public",
)


@click.command(cls=Command, examples=_EXAMPLES, interrupted=_INTERRUPTED)
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("repository", metavar="ORG/NAME")
@option("--public", group=_HUB, is_flag=True, help="Everybody may see it.  [default: a new repository is private]")
@option("--create-pr", group=_HUB, is_flag=True, help="Open a pull request instead of committing to main.")
@option("--gated-ok", group=_HUB, is_flag=True,
        help="Push weights of a gated model without being asked: its licence allows to share them.")  # fmt: skip
@option("--force", group=_HUB, is_flag=True,
        help="Push into a repository that holds something else; what would be loaded with it is removed.")  # fmt: skip
@option("--dry-run", group=RUN, is_flag=True, help="Only say what would be copied and uploaded.")
@message_options
def push(folder: Path, repository: str, as_json: bool, quiet: bool, gated_ok: bool, **options: Any) -> None:
    """Share a finished folder on the Hub.

    DIR is what `init`, `convert`, `merge`, `extract` or `export` wrote. Files that the source has on the Hub are copied
    there, others uploaded, and the checksums of the Hub compared. The adapter of a residual base names the commit that
    was pushed. Run again, it sends what is missing.
    """
    with progress(as_json, quiet) as bar:
        from ..verbs.push import GatedSourceError
        from ..verbs.push import push as run

        try:
            result = run(folder, repository, gated_ok=gated_ok, progress=bar, **options)
        except GatedSourceError as error:
            if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            question = error
        else:
            return print_json(result.to_json()) if as_json else _show(result)
    show_error(question)
    click.confirm("Share them?", abort=True, err=True)
    with progress(as_json, quiet) as bar:
        result = run(folder, repository, gated_ok=True, progress=bar, **options)
    return _show(result)


_WAYS = {
    "uploaded": "uploaded from here", "copied": "copied on the server", "unchanged": "there already",
    "removed": "removed, of an earlier push",
}  # fmt: skip


def _show(result: Push) -> None:
    """What is done how in numbers, then where it is."""
    for how, told in _WAYS.items():
        if count := sum(file.how == how for file in result.files):
            files = f"{count} {'file' if count == 1 else 'files'}, {size(result.nbytes(how))}"
            would = "would be " if result.dry_run and how != "unchanged" else ""
            out.print(Text(f"{files} {would}{told}"), soft_wrap=True)
    state = "private" if result.private else "public"
    if result.dry_run:
        out.print(Text(f"nothing was pushed to {result.url} ({state})"), soft_wrap=True)
        return
    out.print(Text(f"pushed to {result.url} ({state}) at {result.commit}; the Hub's checksums agree"), soft_wrap=True)
    if result.base_commit:
        out.print(Text(f"the adapter names its base {result.repository}@{result.base_commit}"), soft_wrap=True)
    if result.request:
        out.print(Text(f"pull request {result.request}"), soft_wrap=True)
