"""`ailora-tools extract`: its options and its screen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..errors import listed
from ..methods import ALL_LINEAR
from .command import Command, option
from .options import (
    FOLDER,
    MODEL,
    device_option,
    factor_dtype_option,
    memory_option,
    message_options,
    output_option,
    overwrite_options,
    reading_options,
    roles_option,
    where_options,
)
from .screens import decimals, print_block, print_facts, print_json, span, table
from .terminal import progress

if TYPE_CHECKING:
    from ..verbs.extract import Extraction

_LORA = "The LoRA"
_EXAMPLES = (
    "extract path/to/base path/to/tuned -o lora --rank 32",
    "extract org/base org/tuned -o lora --energy 0.9 --rank 128",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("base", type=MODEL)
@click.argument("tuned", type=MODEL)
@option(
    "-r", "--rank", group=_LORA, type=int, help="Rank of each module at most.  [default: 16, or none with --energy]"
)
@option(
    "--energy",
    group=_LORA,
    type=float,
    metavar="SHARE",
    help="Give each module the smallest rank that holds this share of the squared norm of its change, such as 0.9.",
)
@option("--ranks", group=_LORA, type=FOLDER, metavar="FILE", help="A ranks.json with a rank for each module.")
@factor_dtype_option("--dtype", _LORA)
@roles_option(ALL_LINEAR)
@where_options
@output_option("OUT", "Folder to write.", required=True)
@overwrite_options("Replace OUT if an extracted adapter is in it.")
@reading_options("BASE")
@device_option
@memory_option
@option("--dry-run", group="Run", is_flag=True, help="Read headers only, say what would be done, write nothing.")
@message_options
def extract(base: str, tuned: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the LoRA that turns one model into another.

    BASE and TUNED are two models of one architecture, such as one before and after full fine-tuning. Of each linear
    layer the best approximation of the difference at that rank is taken, and what it leaves is told.
    """
    with progress(as_json, quiet) as bar:
        from ..verbs.extract import extract as run  # within: it may take a second, and something is to be seen

        result = run(base, tuned, progress=bar, **options)
    print_json(result.to_json()) if as_json else _show(result)


def _show(result: Extraction) -> None:
    """How well the change is kept, and what no LoRA holds."""
    if result.dry_run:
        print_facts({"modules": len(result.planned), "would write": result.folder})
        return
    modules, still = result.modules, len(result.unchanged) + len(result.rounded)
    noise, worst = (max(getattr(module, name) for module in modules) for name in ("rounding", "error"))
    rounding = f"up to {noise:.1%} of a module's change is at the level of rounding to {modules[0].rounded_to}"
    print_facts({
        "adapter": result.folder,
        "for": result.base,
        "modules": f"{len(modules)}, rank {span(module.rank for module in modules)}, scaling 1",
        "error": f"{result.error:.2g} of the change, at most {worst:.2g} of a module's",
        **({"rounding": rounding} if noise >= _TOLD else {}),
        **({"unchanged": f"{still} modules, which have no part in it"} if still else {}),
        **_beyond(result),
    })  # fmt: skip
    print_block(_by_name(result))


_TOLD = 0.001  # of a change: rounding below it is not spoken of


def _beyond(result: Extraction) -> dict[str, str]:
    """What keeps BASE with the LoRA from being TUNED."""
    if not result.compared:
        return {"not in it": "what else changed was not looked at"}
    groups: dict[str, list[str]] = {}
    for one in result.beyond:
        groups.setdefault(one.why, []).append(one.tensor)
    told = {"changed": "not in it", "another shape": "other shape"}
    return {told.get(why, why): f"{len(names)} tensors: {listed(_kinds(names))}" for why, names in groups.items()}


def _kinds(names: Iterable[str]) -> list[str]:
    """Each name once, numbers of layers as stars."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))


def _by_name(result: Extraction) -> Table:
    """One line for all modules of a name."""
    block = table("module", "count", "rank", "change", "error", "energy held")
    groups: dict[str, list[Any]] = {}
    for module in result.modules:
        groups.setdefault(module.module.rpartition(".")[2], []).append(module)
    for name, held in groups.items():
        columns = (decimals(getattr(one, column) for one in held) for column in ("change", "error", "energy"))
        block.add_row(name, str(len(held)), span(one.rank for one in held), *columns)
    return block
