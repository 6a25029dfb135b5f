"""`ailora-tools relink`: its options and its screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from .command import Command, option
from .options import FOLDER, MODEL, message_options
from .screens import print_json
from .terminal import out

if TYPE_CHECKING:
    from ..verbs.relink import Relinked

_EXAMPLES = ("relink model-ailora-r8 --base org/model-ailora-r8@main", "relink plain-lora --base Qwen/Qwen2.5-0.5B")


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("folder", metavar="DIR", type=FOLDER)
@option("--base", group="Base", metavar="MODEL", type=MODEL, required=True,
        help="What the adapter is for from now on: ORG/NAME or ORG/NAME@REV on the Hub, or a folder.")  # fmt: skip
@message_options
def relink(folder: Path, base: str, as_json: bool, quiet: bool) -> None:
    """Name another base in an adapter.

    DIR is a folder of `init` or any LoRA folder. Two fields of adapter_config.json change, base_model in the card of an
    adapter, and the hashes of both in ailora.json. Every other byte stays, and nothing is asked on the network.
    """
    from ..verbs.relink import relink as run

    result = run(folder, base)
    if as_json:
        return print_json(result.to_json())
    for config in result.configs:
        before, after = _named(config, "before"), _named(config, "after")
        out.print(Text(f"{result.folder / config.file}: {before} → {after}"), soft_wrap=True)
    return None


def _named(config: Relinked, when: str) -> str:
    name, revision = getattr(config, when), getattr(config, f"revision_{when}")
    return f"{name or 'no base'}{f'@{revision}' if revision else ''}"
