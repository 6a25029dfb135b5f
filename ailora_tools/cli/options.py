"""What the commands share: groups of options, and errors as one message with an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..errors import AiloraError, OptionError
from ..methods import BITFIT, METHODS, ROLES, RULES, find_method
from . import screens as console

Command = TypeVar("Command", bound=Callable[..., Any])
_INTERRUPTED = 130


def _roles(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    roles = tuple(value.split(","))
    if len(set(roles)) < len(roles) or not set(roles) <= set(ROLES):
        raise click.BadParameter(f"{value!r} is not a list such as q,v (roles: {', '.join(ROLES)})", ctx, param)
    return roles


def method_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A known method or a composition; roles are looked at later."""
    try:
        return BITFIT if value.strip().lower() == BITFIT else find_method(value)[0].name
    except OptionError as error:
        raise click.BadParameter(f"{error.problem} {error.hint}", ctx, param) from None


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(decorators):
            command = option(command)
        return command

    return decorate


def method_help() -> str:
    """The methods and the rules, a line each, from their tables."""
    rows = [*((row.name, row.summary) for row in METHODS.values()), (BITFIT, "no adapter: the list of biases to train")]
    lines = ["\b", "Methods:", *(f"  {name:<19} {text}" for name, text in rows), "", "\b"]
    lines += ["Rules, for compositions such as --method q=principal,v=minor:"]
    return "\n".join([*lines, *(f"  {row.name:<19} {row.summary}" for row in RULES.values())])


def given(*names: str) -> list[str]:
    """Those of the options of the current command that were not left at their defaults, as they are written."""
    context = click.get_current_context()
    written = {param.name: param.opts[-1] for param in context.command.params}
    return [written[name] for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT]


def base_dtype_option(what: str) -> Callable[[Command], Command]:
    """--base-dtype, with what it is the storage of."""
    choice = click.Choice(["keep", "float32"])
    return click.option("--base-dtype", type=choice, default="keep", show_default=True, help=what)


def factor_dtype_option(name: str) -> Callable[[Command], Command]:
    """The dtype of an adapter, under the name that the command has for it."""
    choice = click.Choice(["float32", "bfloat16", "float16"])
    return click.option(name, type=choice, default="float32", show_default=True, help="Storage of A and B.")


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
target_options = _options(
    click.option(
        "--roles",
        callback=_roles,
        default="q,v",
        metavar="LIST",
        show_default=True,
        help="Which projections: q, k, v, o.",
    ),
    click.option("--layers", metavar="LIST", help="Only these layers, such as 0-3,8."),
    click.option("--q-tensor", metavar="NAME", help="Name of W^Q, such as blocks.{layer}.attn.wq.weight."),
    click.option("--v-tensor", metavar="NAME", help="Name of W^V, likewise."),
)
source_options = _options(
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub."),
    click.option("--subfolder", metavar="DIR", help="Folder of MODEL that holds the weights, such as transformer."),
    click.option("--connections", type=int, default=8, show_default=True, help="Reads at a time from the Hub."),
    click.option(
        "--download", is_flag=True, help="Fetch whole files into the Hugging Face cache, instead of reading parts."
    ),
)
output_options = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."),
    click.option("--quiet", is_flag=True, help="No progress and no notices."),
)


def guarded(verb: Command) -> Command:
    """Turn the library's errors into one message and an exit code; a defect still shows its traceback."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except AiloraError as error:
            console.show_error(error)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            console.show_interrupted("resume" in kwargs)
            # Reads that still wait for the network would hold up a regular exit; everything to keep is on disk.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)

    return run  # type: ignore[return-value]
