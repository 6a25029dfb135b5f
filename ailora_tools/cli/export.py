"""`ailora-tools export`: its options and its screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..adapters.trainers import COMPONENTS, TRAINERS
from .command import Command, option
from .options import FOLDER, MODEL, message_options, output_option, overwrite_options
from .screens import print_json
from .terminal import out, progress

if TYPE_CHECKING:
    from ..verbs.export import Exported

_FORMAT = "Format"
_EXAMPLES = (
    "export model-ailora-r8 --to mlx -o mlx-adapter",
    "export plain-lora --to torchtune --base path/to/model -o tune-adapter",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("adapter", metavar="DIR", type=FOLDER)
@option("--to", group=_FORMAT, required=True, type=click.Choice(list(TRAINERS)), help="Format to write.")
@option(
    "--base",
    group=_FORMAT,
    metavar="MODEL",
    type=MODEL,
    help="The model that the adapter is for; torchtune's order of rows depends on its config.json.  [default: DIR, "
    "or the model that the adapter names]",
)
@option(
    "--component",
    group=_FORMAT,
    metavar="NAME",
    help=f"Component of the diffusers pipeline that the adapter is for: {', '.join(COMPONENTS)}.  [default: the "
    "one that `init` was given]",
)
@output_option("OUT", "Folder to write.", required=True)
@overwrite_options("Replace OUT if such a file is in it.")
@message_options
def export(adapter: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write an adapter in the format of another trainer.

    DIR is a folder of `init` or any LoRA folder, OUT what torchtune, mlx-lm or diffusers read. An adapter at its
    start still needs its residual base.
    """
    with progress(as_json, quiet) as bar:
        from ..verbs.export import export as run  # within: it may take a second, and something is to be seen

        result = run(adapter, progress=bar, **options)
    print_json(result.to_json()) if as_json else _show(result)


def _show(result: Exported) -> None:
    files = ", ".join(str(result.folder / name) for name in result.files)
    out.print(Text(f"{result.modules} modules for {result.trainer}: {files}"), soft_wrap=True)
    out.print(Text(f"load it: {result.load}"), soft_wrap=True)
