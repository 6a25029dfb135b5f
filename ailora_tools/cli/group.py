"""The program `ailora-tools`: the group of its commands. No torch is loaded until a command needs it."""

from __future__ import annotations

import os
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import click

from ..team.place import read_place
from .analyze import analyze
from .command import write_examples
from .convert import convert
from .export import export
from .init import init
from .inspect import inspect
from .merge import merge
from .report import report
from .terminal import settle_streams, visible
from .verify import verify

_EXAMPLES = (
    "analyze Qwen/Qwen2.5-0.5B",
    "init Qwen/Qwen2.5-0.5B --rank 8",
    "verify Qwen2.5-0.5B-ailora-r8",
)


class _Group(click.Group):
    def main(self, *args: Any, **options: Any) -> Any:
        settle_streams()
        if read_place().leads:
            return super().main(*args, **options)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return super().main(*args, **options)  # a defect shows its traceback on leaving

    def invoke(self, ctx: click.Context) -> Any:
        """Wrong usage quotes arguments, which may be names of files that a shell has put in."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.message = visible(error.message)  # type: ignore[misc]
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, _EXAMPLES)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ailora-tools", prog_name="ailora-tools")
def main() -> None:
    """Start LoRA adapters from the weights of the model, by function.

    The adapter of W^Q gets the principal singular components, the adapter of W^V the minor ones
    (AILoRA, arXiv 2510.08034); what went into the adapter is taken out of the frozen base.
    """


for command in (inspect, analyze, init, verify, convert, merge, export, report):
    main.add_command(command)
