"""The command line and Python are one tool: the same options under the same names, with the same defaults."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import click
import pytest

import ailora_tools
from ailora_tools.checkpoint.source import SourceOptions
from ailora_tools.cli.group import main

NAMES = {"init": "initialize", "inspect": "inspect_checkpoint", "report": "render_report"}
PRINTED = {"as_json", "quiet", "verbose", "log"}  # what is printed is not for Python, `progress` is not for a shell
CALLED = {"convert": {"start": "init"}}  # a module called `init` would hide the verb
READING = {"revision": None, "subfolder": None, "connections": 8, "download": False}


def options(verb: str) -> dict[str, Any]:
    """What a command hands on by default, without what has to be given."""
    command = main.commands[verb]
    given = [word for one in command.params if one.required for word in words(one)]
    parameters = command.make_context(verb, given).params
    called = CALLED.get(verb, {})
    required = {one.name for one in command.params if one.required}
    return {
        called.get(name, name): "required" if name in required else value
        for name, value in parameters.items()
        if name not in PRINTED
    }


def words(parameter: click.Parameter) -> list[str]:
    value = parameter.type.choices[0] if isinstance(parameter.type, click.Choice) else "x"
    return [value] if isinstance(parameter, click.Argument) else [parameter.opts[-1], value]


def parameters(verb: str) -> dict[str, Any]:
    """The same of the function; `**source` stands for how a model is read."""
    found: dict[str, Any] = {}
    for name, one in inspect.signature(getattr(ailora_tools, NAMES.get(verb, verb))).parameters.items():
        if one.kind is one.VAR_KEYWORD:
            found |= READING
        elif name != "progress":
            found[name] = "required" if one.default is one.empty else one.default
    return found


@pytest.mark.parametrize("verb", sorted(main.commands))
def test_options_and_defaults_are_the_same(verb: str) -> None:
    here, there = options(verb), parameters(verb)
    if verb == "init":
        here["roles"] = None  # those of the method, unless some are named
    assert here == there


def test_how_a_model_is_read_is_the_same() -> None:
    assert set(get_type_hints(SourceOptions)) == set(READING)
