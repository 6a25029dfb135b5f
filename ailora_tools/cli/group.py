"""The program `ailora-tools`: the group of its commands. No torch is loaded until a command needs it."""

from __future__ import annotations

import atexit
import gc
import os
from contextlib import redirect_stderr, redirect_stdout
from inspect import cleandoc
from typing import Any

import click

from ..team.place import read_place
from ..version import __version__
from .analyze import analyze
from .command import write_examples
from .convert import convert
from .export import export
from .extract import extract
from .init import init
from .inspect import inspect
from .merge import merge
from .push import push
from .relink import relink
from .report import report
from .terminal import settle_streams, visible
from .verify import verify

_EXAMPLES = (
    "analyze Qwen/Qwen2.5-0.5B",
    "init Qwen/Qwen2.5-0.5B --rank 8",
    "verify Qwen2.5-0.5B-ailora-r8",
)


# Names of verbs in Python and in other tools, and what may be taken for one.
_CALLED = {
    "initialize": "init", "initialise": "init", "inspect_checkpoint": "inspect", "show": "inspect",
    "analyse": "analyze", "render_report": "report", "check": "verify", "help": "--help", "version": "--version",
}  # fmt: skip


def _first_sentence(command: click.Command) -> str:
    first = cleandoc(command.help or "").split("\n\n")[0]
    return " ".join(first.split())


_OBJECTS = 10_000  # made before Python looks for garbage


class _Group(click.Group):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """As a process of its own. What loading torch makes stays to the end: to look through it for garbage again and
        again, and once more on leaving, took a quarter of the time of loading it."""
        gc.set_threshold(_OBJECTS)
        atexit.register(gc.freeze)
        return super().__call__(*args, **options)

    def main(self, *args: Any, **options: Any) -> Any:
        settle_streams()
        if read_place().leads:
            return super().main(*args, **options)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return super().main(*args, **options)  # a defect shows its traceback on leaving

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of work."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with the whole first sentence of its help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_sentence(command)) for name, command in self.commands.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """What people call the verbs elsewhere leads to them."""
        if args and args[0] not in self.commands and (meant := _CALLED.get(args[0].lower())):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Wrong usage quotes arguments, which may be names of files that a shell has put in."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.message = visible(error.message)  # type: ignore[misc]
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, _EXAMPLES)


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Group, invoke_without_command=True, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="ailora-tools")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Start LoRA adapters from the weights of the model, by function.

    The adapter of W^Q gets the principal singular components, the adapter of W^V the minor ones
    (AILoRA, arXiv 2510.08034); what went into the adapter is taken out of the frozen base.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (inspect, analyze, init, verify, convert, merge, extract, export, push, relink, report):
    main.add_command(command)
