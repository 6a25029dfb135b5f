"""`ailora-tools convert`: its options and its screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from ..errors import listed
from .command import Command, option
from .options import FOLDER, factor_dtype_option, message_options, output_option, overwrite_options
from .screens import print_facts, print_json, span
from .terminal import out, progress

if TYPE_CHECKING:
    from ..verbs.convert import Conversion

_CONVERSION = "Conversion"
_INTRUDERS = "Intruder dimensions"
_EXAMPLES = (
    "convert output/checkpoint-100 --init model-ailora-r8 -o plain-lora",
    "convert output/checkpoint-100 --init model-ailora-r8 --rank 8 -o plain-lora-r8",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("trained", type=FOLDER)
@option(
    "--init",
    "start",
    group=_CONVERSION,
    required=True,
    metavar="DIR",
    type=FOLDER,
    help="Folder that `init` wrote, or ORG/NAME that it was pushed to, from which TRAINED was trained.",
)
@option(
    "-r",
    "--rank",
    group=_CONVERSION,
    type=int,
    help="Rank of the plain LoRA, which is then the best one of this rank; what it loses is printed.  [default: "
    "twice the largest rank of TRAINED, which loses nothing]",
)
@option(
    "--keep-ranks",
    group=_CONVERSION,
    is_flag=True,
    help="Leave each module its own rank. PEFT and vLLM read that; llama.cpp, Ollama, SGLang, TGI and LoRAX do not.  "
    "[default: one rank, smaller modules filled up with zeros]",
)
@option(
    "--all-layers",
    group=_CONVERSION,
    is_flag=True,
    help="Add factors of zero for the layers that `init --layers` left out: TGI and LoRAX drop a kind of module that "
    "not every layer has.",
)
@factor_dtype_option("--dtype", _CONVERSION)
@option(
    "--reduce-intruders",
    group=_INTRUDERS,
    type=float,
    is_flag=False,
    flag_value=0.75,
    metavar="[SHARE]",
    help="Leave directions that training made, and that the model has nothing like, this share of their size (0.75), "
    "against forgetting; what that costs is printed. Reads the weights.",
)
@option(
    "--intruders-of",
    group=_INTRUDERS,
    type=int,
    default=10,
    show_default=True,
    help="How many of the largest directions of each trained matrix are looked at.",
)
@option(
    "--intruder-cosine",
    group=_INTRUDERS,
    type=float,
    default=0.5,
    show_default=True,
    help="A direction without such a cosine to any of the original is an intruder.",
)
@output_option("OUT", "Folder to write.", required=True)
@overwrite_options("Replace OUT if an adapter is in it.")
@message_options
def convert(trained: Path, start: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Turn a trained adapter into a plain LoRA for the original model.

    TRAINED is the folder that a trainer saved, DIR the one that `init` wrote; neither is changed and no model is read.
    """
    with progress(as_json, quiet) as bar:
        from ..verbs.convert import convert as run  # within: it may take a second, and something is to be seen

        result = run(trained, start, progress=bar, **options)
    print_json(result.to_json()) if as_json else _show(result)


def _show(result: Conversion) -> None:
    """How well the change is kept, and what to load."""
    modules = result.modules
    lost = max(module.truncated for module in modules)
    filled = sum(module.filled > 0 for module in modules)
    still = sum(not module.changed for module in modules)
    unchanged = f"{still} of {len(modules)} modules are as they started: their part is zero"
    print_facts({
        "adapter": result.folder,
        "for": f"{result.base}, the original model",
        "modules": f"{len(modules)}, rank {span(module.rank for module in modules)}, scaling {result.scaling:.6g}",
        **({"filled up": f"{filled} of them with zeros to that rank"} if filled else {}),
        **({"added": f"{len(result.added)} of other layers, all zero"} if result.added else {}),
        "error": f"at most {max(module.error for module in modules):.1e} of the change ({lost:.1e} by the rank)",
        **({"unchanged": unchanged} if still else {}),
        **({"kept": listed(result.kept)} if result.kept else {}),
    })  # fmt: skip
    if lost:
        out.print(_truncation(result))
    if any(module.intruders is not None for module in modules):
        out.print(_intruders(result))


def _intruders(result: Conversion) -> Table:
    """Which modules had any, and how much of what training did is gone with them."""
    made = Table(box=None, padding=(0, 2), header_style="bold")
    made.add_column("module", overflow="fold")
    for name in ("intruders", "taken of the change"):
        made.add_column(name, justify="right")
    for module in result.modules:
        made.add_row(Text(module.module), str(module.intruders), f"{module.taken or 0.0:.2%}")
    return made


def _truncation(result: Conversion) -> Table:
    """What the rank took from each module."""
    made = Table(box=None, padding=(0, 2), header_style="bold")
    made.add_column("module", overflow="fold")
    for name in ("rank", "lost by the rank", "stored, all in all"):
        made.add_column(name, justify="right")
    for module in result.modules:
        made.add_row(Text(module.module), str(module.rank), f"{module.truncated:.2%}", f"{module.error:.2%}")
    return made
