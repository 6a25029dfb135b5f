"""`ailora-tools merge`: its options and its screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..checkpoint.header import FACTOR_DTYPES
from ..team.place import read_place
from .command import Command, option
from .options import (
    FOLDER,
    MODEL,
    OUTPUT,
    base_dtype_option,
    device_option,
    message_options,
    output_option,
    overwrite_options,
    reading_options,
)
from .screens import print_facts, print_json
from .terminal import progress

if TYPE_CHECKING:
    from ..verbs.merge import Merge

_EXAMPLES = (
    "merge model-ailora-r8 output/checkpoint-100 -o merged",
    "merge path/to/model plain-lora -o merged",
)


@click.command(cls=Command, together=True, examples=_EXAMPLES)
@click.argument("base", type=MODEL)
@click.argument("adapter", type=FOLDER)
@output_option("OUT", "Folder to write.", required=True)
@overwrite_options("Replace OUT if a checkpoint is in it.")
@base_dtype_option(OUTPUT, "the changed tensors are stored")
@option(
    "--dtype",
    group=OUTPUT,
    type=click.Choice(list(FACTOR_DTYPES)),
    help="Number type in which the matrices of a quantised BASE are stored.  [default: that of its config.json]",
)
@option(
    "--zeros",
    group=OUTPUT,
    type=click.Choice(["float"]),
    help="Leave a quantised BASE in few bits, and put a QA-LoRA into its zero points, in float16, or MLX's biases.",
)
@reading_options("BASE")
@device_option
@message_options
def merge(base: str, adapter: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Add an adapter to its base and write a whole checkpoint.

    BASE is the model that ADAPTER was trained on: the folder that `init` wrote, or an original for a plain LoRA.
    It is read and written shard by shard. Of a quantised BASE every matrix becomes the numbers that it stands for.
    """
    with progress(as_json, quiet) as bar:
        from ..verbs.merge import merge as run  # within: it may take a second, and something is to be seen

        result = run(base, adapter, progress=bar, **options)
    if not read_place().leads:
        return
    print_json(result.to_json()) if as_json else _show(result)


def _show(result: Merge) -> None:
    """What changed most, and where the model is."""
    most = max(result.modules, key=lambda module: module.change)
    print_facts({
        "model": result.folder,
        "changed": f"{len(result.modules)} tensors, stored as {', '.join(result.dtypes)}",
        **({"out of few bits": f"{len(result.restored)} matrices"} if result.restored else {}),
        "most": f"{most.tensor}: {most.change:.2e} of its norm",
    })  # fmt: skip
