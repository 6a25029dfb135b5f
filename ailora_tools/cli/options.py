"""The options that several commands have, each declared once with its group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ..checkpoint.header import BASE_DTYPES, FACTOR_DTYPES
from ..methods import ALL_LINEAR, ROLES, is_role
from .command import MESSAGES, Function, option
from .log import open_log, set_verbose

MATRICES = "Matrices to work on"
READING = "Reading the model"
OUTPUT = "Output"
RUN = "Run"


class _Folder(click.Path):
    """A path; that of an unset variable, which is empty, would silently be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "" or "\0" in str(value):
            self.fail("a path is empty" if value == "" else "a path holds a NUL", param, ctx)
        return super().convert(value, param, ctx)


class _Model(click.types.StringParamType):
    """A path, or a name on the Hub: any text. Shells complete it as a path."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class _Place(_Model):
    """A folder that has to be named, here or on the Hub."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "" or "\0" in str(value):
            self.fail("a path is empty" if value == "" else "a path holds a NUL", param, ctx)
        return super().convert(value, param, ctx)


FOLDER, MODEL, PLACE = _Folder(path_type=Path), _Model(), _Place()
Decorator = Callable[[Function], Function]


def given(*names: str) -> list[str]:
    """Those of the options of the current command that were not left at their defaults, as they are written."""
    context = click.get_current_context()
    written = {param.name: param.opts[-1] for param in context.command.params}
    return [written[name] for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT]


def _role(text: str) -> str:
    """Neither blanks nor capitals matter in the names of roles."""
    return text.strip().lower() if text.strip().lower() in ROLES else text.strip()


def _roles(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    roles = tuple(map(_role, value.split(",")))
    possible = roles == (ALL_LINEAR,) or all(map(is_role, roles))
    if len(set(roles)) < len(roles) or not possible:
        raise click.BadParameter(
            f"{value!r} is not a list such as q,v (roles: {', '.join(ROLES)}, {ALL_LINEAR}, or names of modules)",
            ctx, param,
        )  # fmt: skip
    return roles


def _together(*decorators: Decorator) -> Decorator:
    def decorate(command: Function) -> Function:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def matrix_options(command: Function) -> Function:
    """Which projections: --roles, --layers, --q-tensor, --v-tensor."""
    return _together(roles_option("q,v"), where_options)(command)


def roles_option(default: str) -> Decorator:
    """--roles; with the default all-linear, None stands for it."""
    plain = default == ALL_LINEAR
    text = (
        "Matrices to work on: one or more of q, k, v, o, gate, up and down, or of the names that the model has for "
        "modules in its layers; or all-linear, for every linear layer of them."
    )
    if plain:
        return option("--roles", group=MATRICES, metavar="LIST", callback=_roles, help=f"{text}  [default: {default}]")
    return option("--roles", group=MATRICES, metavar="LIST", default=default, show_default=True, callback=_roles,
                  help=text)  # fmt: skip


def where_options(command: Function) -> Function:
    """Which of them: --layers, --q-tensor, --v-tensor."""
    return _together(
        option("--layers", group=MATRICES, metavar="LIST",
               help="Numbers of the layers to work on, such as 0-3,8.  [default: all]"),
        option("--q-tensor", group=MATRICES, metavar="NAME",
               help="Name of the tensors that hold W^Q, such as blocks.{layer}.attn.wq.weight, if they are not found "
                    "by themselves."),
        option("--v-tensor", group=MATRICES, metavar="NAME",
               help="Name of the tensors that hold W^V, such as blocks.{layer}.attn.wv.weight, if they are not found "
                    "by themselves."),
    )(command)  # fmt: skip


def reading_options(model: str) -> Decorator:
    """How `model`, as the command names it, is read: --revision, --subfolder, --connections, --download."""
    return _together(
        option("--revision", group=READING, metavar="REV",
               help=f"Branch, tag or commit of {model} on the Hub.  [default: main]"),
        option("--subfolder", group=READING, metavar="DIR",
               help=f"Folder inside {model} that holds the weights, such as transformer."),
        option("--connections", group=READING, type=int, default=8, show_default=True,
               help="Number of reads from the Hub at the same time."),
        option("--download", group=READING, is_flag=True,
               help="Download whole files into the Hugging Face cache, instead of reading only the parts needed."),
    )  # fmt: skip


def output_option(metavar: str, text: str, *, required: bool = False) -> Decorator:
    """-o, with what it is called and what it is."""
    return option("-o", "--output", group=OUTPUT, type=FOLDER, metavar=metavar, required=required, help=text)


def overwrite_options(text: str) -> Decorator:
    """--overwrite, with what it replaces, and --force."""
    return _together(
        option("--overwrite", group=OUTPUT, is_flag=True, help=text),
        option("--force", group=OUTPUT, is_flag=True,
               help="With --overwrite: also remove files in it that ailora-tools did not write."),
    )  # fmt: skip


def device_option(command: Function) -> Function:
    """--device."""
    text = "Device to compute on: auto, cpu, cuda, cuda:N or mps."
    return option("--device", group=RUN, metavar="NAME", default="auto", show_default=True, help=text)(command)


def memory_option(command: Function) -> Function:
    """--memory."""
    text = "Memory to use at most, such as 8GB: fewer matrices at a time.  [default: 70 % of what is free]"
    return option("--memory", group=RUN, metavar="SIZE", help=text)(command)


def resume_option(command: Function) -> Function:
    """--resume."""
    text = "Continue an interrupted run of the same command."
    return option("--resume", group=RUN, is_flag=True, help=text)(command)


def team_options(command: Function) -> Function:
    """What concerns several processes: --mixed, --no-shared-folder."""
    return _together(
        option("--mixed", group=RUN, is_flag=True,
               help="With torchrun: allow machines of several kinds, named in the record of each matrix."),
        option("--no-shared-folder", "shared_folder", group=RUN, is_flag=True, flag_value=False, default=True,
               help="With torchrun: the processes do not see one folder; results go over the network."),
    )(command)  # fmt: skip


def message_options(command: Function) -> Function:
    """What is printed: --json, --quiet, --verbose, --log."""
    return _together(
        option("--json", "as_json", group=MESSAGES, is_flag=True, help="Print one JSON document and nothing else."),
        option("--quiet", group=MESSAGES, is_flag=True, help="Show no progress and no notices; results all the same."),
        option("--verbose", group=MESSAGES, is_flag=True, expose_value=False, callback=set_verbose,
               help="Tell every step on stderr."),
        option("--log", group=MESSAGES, metavar="FILE", type=FOLDER, expose_value=False, callback=open_log,
               help="Add every step and message to FILE, with times."),
    )(command)  # fmt: skip


def base_dtype_option(group: str, what: str) -> Decorator:
    """--base-dtype, with what is stored in it."""
    text = f"Number type in which {what}; keep: that of the model."
    choice = click.Choice(BASE_DTYPES)
    return option("--base-dtype", group=group, type=choice, default="keep", show_default=True, help=text)


def factor_dtype_option(name: str, group: str) -> Decorator:
    """The number type of an adapter, under the name that the command has for it."""
    text = "Number type in which A and B are stored."
    choice = click.Choice(list(FACTOR_DTYPES))
    return option(name, group=group, type=choice, default="float32", show_default=True, help=text)
