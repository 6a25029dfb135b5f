"""What all commands share: help with groups of options and examples, errors as one message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from ..errors import AiloraError
from ..team.place import read_place
from ..team.team import farewell, find_team
from .log import log_of
from .screens import show_error, show_interrupted

Function = Callable[..., Any]
Rows = Sequence[tuple[str, str]]  # what stands on the left and on the right of a list in a help screen

MESSAGES = "Messages"  # the group of what is printed, --help included
_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_LEFT = 24  # columns for the names of options; longer ones get a line of their own
_SYSTEM = "The system refused this: check the path, its permissions and `ulimit -a`."


class Option(click.Option):
    """An option that help screens show under the heading `group`."""

    def __init__(self, *args: Any, group: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


def option(*names: str, group: str, **settings: Any) -> Callable[[Function], Function]:
    """`click.option`, under the heading `group`."""
    return click.option(*names, cls=Option, group=group, **settings)


class Command(click.Command):
    """A verb. `lists` (heading -> rows) and `examples` (without the name of the program) end its help. together: the
    processes that torchrun starts share its work; else the first does all of it. interrupted: what to say of a run that
    Ctrl-C ended, where it is neither resumed nor without a trace."""

    def __init__(
        self, *args: Any, examples: Sequence[str], lists: Mapping[str, Rows] | None = None, together: bool = False,
        interrupted: str = "", **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **settings)
        self.examples, self.lists, self.together, self.interrupted = examples, lists or {}, together, interrupted

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The groups in the order in which their first options are declared."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                name, text = record
                groups.setdefault(getattr(parameter, "group", MESSAGES), []).append((name.ljust(_LEFT), text))
        for heading, rows in (*groups.items(), *self.lists.items()):
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=_LEFT)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, each in one line that can be copied."""
        write_examples(formatter, self.examples)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; a defect still shows its traceback."""
        place = read_place()
        if not self.together and not place.leads:
            return None
        try:
            if place.restarts and (code := find_team().ended()) is not None:
                sys.exit(code)
            result = super().invoke(ctx)
            _logged(ctx, "done")
            return result
        except SystemExit as end:
            _logged(ctx, f"exit code {end.code}")
            raise
        except AiloraError as error:
            code = _refused(ctx, error)
            farewell(error)
            sys.exit(code)
        except OSError as error:  # of the system, such as a file that may not be read; not a defect
            if error.filename is None:
                raise
            sys.exit(_refused(ctx, AiloraError(f"{os.fsdecode(error.filename)}: {error.strerror}.", _SYSTEM)))
        except KeyboardInterrupt:
            show_interrupted("resume" in ctx.params, self.interrupted)
            # Reads that still wait for the network would hold up a regular exit; everything to keep is on disk.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)


def _refused(ctx: click.Context, error: AiloraError) -> int:
    """Show the error unless another process has, keep it in the log, and say which exit code it has."""
    if not error.told:
        show_error(error)
    _logged(ctx, f"error: {error}")
    return error.exit_code


def _logged(ctx: click.Context, text: str) -> None:
    if log := log_of(ctx):
        log.write(text)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """The last section of a help screen."""
    with formatter.section("Examples"):
        for line in examples:
            formatter.write(f"{'':{formatter.current_indent}}ailora-tools {line}\n")
