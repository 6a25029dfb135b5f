"""`ailora-tools inspect`: its options and its screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..report.words import size
from .command import Command
from .options import MODEL, matrix_options, message_options, reading_options
from .screens import print_json, print_targets, show_traffic
from .terminal import durations, notices, out

if TYPE_CHECKING:
    from ..checkpoint.files import Origin
    from ..verbs.inspect import Inspection

_EXAMPLES = ("inspect Qwen/Qwen2.5-0.5B", "inspect path/to/model")


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("model", type=MODEL)
@matrix_options
@reading_options("MODEL")
@message_options
def inspect(model: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show which tensors of MODEL are W^Q and W^V, from headers alone.

    MODEL is a folder, one .safetensors file, or a Hub id.
    """
    from ..verbs.inspect import inspect_checkpoint

    found = inspect_checkpoint(model, **options)
    print_json(found.to_json()) if as_json else _show(found, quiet)
    show_traffic(found.checkpoint.files.traffic, quiet)


def _show(found: Inspection, quiet: bool) -> None:
    """The plan as a table, and what reading it takes."""
    plan, checkpoint = found.plan, found.checkpoint
    if not quiet:
        notices(plan.notices)
    share = plan.read_bytes / checkpoint.nbytes
    out.print(_origin(checkpoint.origin), soft_wrap=True)
    shards = f"{len(checkpoint.headers)} file{'s' if len(checkpoint.headers) > 1 else ''}"
    out.print(f"{plan.family} (model type {plan.model_type or 'not stated'}), {shards}, {size(checkpoint.nbytes)}")
    print_targets(plan.targets)
    out.print(
        f"To read: {size(plan.read_bytes)} of {size(checkpoint.nbytes)} ({share:.1%}). "
        f"Working memory: about {size(found.working_memory)} beside Python and torch."
    )
    if checkpoint.files.traffic is not None:
        out.print(f"That takes {durations(plan.read_bytes)}.")


def _origin(origin: Origin) -> Text:
    """The place; of a model on the Hub also the commit."""
    return Text.assemble((origin.text, "bold"), f" at {origin.revision}" if origin.revision else "")
