"""`ailora-tools init`: its options and its screens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem
from rich.table import Table
from rich.text import Text

from ..errors import OptionError, listed
from ..methods import BITFIT, METHODS, RULES, find_method, role_order, symbol
from ..output.loading import load_lines
from ..output.names import CARD
from ..report.words import size
from ..team.place import read_place
from .command import Command, option
from .options import (
    MODEL,
    RUN,
    base_dtype_option,
    device_option,
    factor_dtype_option,
    given,
    matrix_options,
    memory_option,
    message_options,
    output_option,
    overwrite_options,
    reading_options,
    resume_option,
    team_options,
)
from .screens import (
    decimals,
    print_block,
    print_code,
    print_facts,
    print_json,
    print_targets,
    show_traffic,
    span,
    table,
    width_of,
)
from .terminal import out, progress
from .verdicts import STEP, VERDICTS

if TYPE_CHECKING:
    from ..output.manifest import Manifest, ModuleRecord
    from ..verbs.bitfit import BiasList
    from ..verbs.initialization import Initialization

_ADAPTER = "Adapter"
_BESIDE = "Beside the adapter"
_BASE = "Residual base"
_METHODS = [*((row.name, row.summary) for row in METHODS.values()), (BITFIT, "no adapter: the list of biases to train")]
_LISTS = {
    "Methods": _METHODS,
    "Rules, for a --method such as q=principal,v=minor": [(row.name, row.summary) for row in RULES.values()],
}
_EXAMPLES = (
    "init Qwen/Qwen2.5-0.5B --rank 8",
    "init path/to/model --rank 8",
    "init path/to/model --rank 16 --method pissa -o model-pissa",
)
_BITFIT_OPTIONS = ("output", "overwrite", "force", "dry_run", "revision", "subfolder", "download", "connections")
_NUMBERS: dict[str, Callable[[list[ModuleRecord]], str]] = {
    "starts from": lambda group: group[0].rule,
    "matrices": lambda group: str(len(group)),
    "rank": lambda group: span(record.rank for record in group),
    "singular values moved": lambda group: decimals(value for record in group for value in record.singular_values),
    "gap at the cut": lambda group: decimals(record.gap for record in group),
    "survival in the base": lambda group: decimals(record.survival for record in group),
    "reconstruction error": lambda group: decimals(record.reconstruction_error for record in group),
    "error on the grid": lambda group: decimals(record.grid_error for record in group),
    "of plain W there": lambda group: decimals(record.plain_error for record in group),
    STEP: lambda group: decimals(record.motion for record in group),
    "dead components": lambda group: str(sum(record.dead for record in group)),
    "rounding": lambda group: ", ".join(sorted({record.rounding for record in group})),
}
_OF_GRID = ("error on the grid", "of plain W there")


def _method(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A known method or a composition; roles are looked at later."""
    try:
        return BITFIT if value.strip().lower() == BITFIT else find_method(value)[0].name
    except OptionError as error:
        raise click.BadParameter(f"{error.problem} {error.hint}", ctx, param) from None


def _complete_method(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=text) for name, text in _METHODS if name.startswith(incomplete.lower())]


def _major(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    return None if value == "auto" else int(value)


@click.command(cls=Command, together=True, examples=_EXAMPLES, lists=_LISTS)
@click.argument("model", type=MODEL, default=".")
@option(
    "-r", "--rank", group=_ADAPTER, type=int, help="Rank of every adapter.  [default: that of --ranks, without it 8]"
)
@option(
    "--ranks",
    group=_ADAPTER,
    metavar="FILE",
    type=MODEL,
    help="File with a rank and an alpha for each module: the ranks.json that `analyze` wrote.",
)
@option(
    "--method",
    group=_ADAPTER,
    metavar="NAME",
    callback=_method,
    shell_complete=_complete_method,
    default="ailora",
    show_default=True,
    help="What the adapters start from: one of the methods below, or a rule for each role.",
)
@option(
    "--alpha",
    group=_ADAPTER,
    type=int,
    help="lora_alpha of the adapters.  [default: the rank, so that the scaling is 1]",
)
@option(
    "--rslora",
    group=_ADAPTER,
    is_flag=True,
    help="Scale the adapters by alpha / sqrt(rank) instead of alpha / rank (rsLoRA).",
)
@option(
    "--dora",
    group=_ADAPTER,
    is_flag=True,
    help="Train magnitudes too (DoRA); they start as the norms of the rows of the original matrices.",
)
@option(
    "--bias",
    group=_ADAPTER,
    type=click.Choice(["none", "all", "lora_only"]),
    default="none",
    show_default=True,
    help="Which biases PEFT trains besides A and B.",
)
@option(
    "--modules-to-save",
    group=_BESIDE,
    metavar="NAME",
    multiple=True,
    help="Train this module whole, as PEFT's modules_to_save does: classifier, score, lm_head. May be repeated.",
)
@option(
    "--trainable-tokens",
    group=_BESIDE,
    metavar="TOKENS",
    help="Train these rows of the input embedding, such as 3,7,32000-32010.",
)
@option(
    "--model-class",
    group=_BESIDE,
    metavar="NAME",
    help="Class of transformers that will train, such as BertForSequenceClassification; a module to save that the "
    "base lacks is made anew.  [default: as config.json says]",
)
@option(
    "--num-labels",
    group=_BESIDE,
    type=int,
    help="Labels of the head of --model-class.  [default: as config.json says]",
)
@option(
    "--group-size",
    group=_ADAPTER,
    type=click.IntRange(1),
    help="With --method qalora: inputs that A sums over, a multiple of the base's groups.  [default: those]",
)
@factor_dtype_option("--adapter-dtype", _ADAPTER)
@option(
    "--transformers-major",
    group=_ADAPTER,
    type=click.Choice(["auto", "4", "5"]),
    default="auto",
    show_default=True,
    callback=_major,
    help="transformers version whose module names are used; auto: the installed one.",
)
@base_dtype_option(_BASE, "the changed matrices are stored")
@option(
    "--rounding",
    group=_BASE,
    type=click.Choice(["auto", "nearest", "stochastic"]),
    default="auto",
    show_default=True,
    help="How changed matrices are rounded to 16 bits; auto: to nearest, or stochastically where rounding to "
    "nearest would undo the surgery.",
)
@option(
    "--grid",
    group=_BASE,
    type=click.Choice(["nf4", "fp4"]),
    help="Put the residual on this grid of bitsandbytes, in the dtype of MODEL, for load_in_4bit: bit for bit.",
)
@option(
    "--rounds",
    group=_BASE,
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="With --grid: how often principal components are found anew of what the grid has lost, at most.",
)
@option(
    "--no-base",
    group=_BASE,
    is_flag=True,
    help="Write no base, but a second, frozen adapter for use with the original: for a quantised MODEL, or to "
    "save disk space.",
)
@matrix_options
@reading_options("MODEL")
@output_option("DIR", "Folder to write.  [default: <model>-<method>-r<rank>]")
@overwrite_options("Replace DIR if ailora-tools wrote it.")
@device_option
@memory_option
@option("--seed", group=RUN, type=int, default=0, show_default=True, help="Seed of all random numbers.")
@resume_option
@team_options
@option("--dry-run", group=RUN, is_flag=True, help="Check everything and say what would be written, but write nothing.")
@message_options
def init(model: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the adapter and the residual base of MODEL.

    MODEL is a folder, one .safetensors file, or a Hub id; default: the current folder. DIR becomes a
    complete checkpoint, with the adapter in DIR/ailora_init for PEFT. The source is never changed.
    """
    if options["method"] == BITFIT:
        if read_place().leads:
            _list_biases(model, as_json, options)
        return
    if not given("roles"):
        options["roles"] = None  # those of the method
    if options["grid"] is None and given("rounds"):
        raise click.UsageError("--rounds are those of --grid.")
    with progress(as_json, quiet) as bar:
        from ..verbs.initialize import initialize  # within: it may take a second, and something is to be seen

        result = initialize(model, progress=bar, **options)
    if not read_place().leads:
        return
    print_json(result.to_json()) if as_json else _show(result)
    show_traffic(result.operation.checkpoint.files.traffic, quiet)


def _list_biases(model: str, as_json: bool, options: dict[str, Any]) -> None:
    """BitFit has no adapter, and so none of the options that an adapter has."""
    from ..verbs.bitfit import bitfit

    if idle := given(*(name for name in options if name not in (*_BITFIT_OPTIONS, "method"))):
        raise click.UsageError(f"--method bitfit has no adapter, and so no {', '.join(idle)}.")
    found = bitfit(model, **{name: options[name] for name in _BITFIT_OPTIONS})
    print_json(found.to_json()) if as_json else _show_biases(found, options["dry_run"])


def _show(result: Initialization) -> None:
    """What was moved and how well it holds, role by role; then what to do next."""
    operation, manifest = result.operation, result.manifest
    if manifest is None:
        print_targets(operation.plan.targets)
        out.print(f"Dry run: {size(operation.nbytes)} would be written to {result.folder}.", soft_wrap=True)
        return
    _show_numbers(manifest.modules)
    print_facts({
        "base": result.folder if manifest.base else operation.checkpoint.location,
        "adapter": result.adapter,
        **({"frozen": result.offset} if manifest.offset else {}),
        **({"beside it": listed([record.name for record in manifest.extras], 4)} if manifest.extras else {}),
        "check it": f"ailora-tools verify {quote(str(result.folder))}",
        "load it": f"as {result.folder / CARD} shows{':' if (lines := _loading(result, manifest)) else ''}",
    })  # fmt: skip
    print_code(lines)


def _loading(result: Initialization, manifest: Manifest) -> list[str]:
    """Python for one base and one adapter; nothing where it takes more than that."""
    from ..surgery.describe import loader

    found = loader(result.operation, manifest.modules)
    return [] if manifest.offset or found.call is None else load_lines(found, str(result.adapter))


def _show_numbers(records: Sequence[ModuleRecord]) -> None:
    """The table of all roles, or as many tables as the terminal is too narrow for one; then what is to be known."""
    roles = sorted({record.role for record in records}, key=role_order)
    verdicts = {name: judge(records) for name, judge in VERDICTS.items()}
    for count in range(len(roles), 0, -1):
        parts = [roles[at : at + count] for at in range(0, len(roles), count)]
        tables = [_numbers_of(records, part, verdicts) for part in parts]
        if count == 1 or max(map(width_of, tables)) <= out.width:
            break
    for made in tables:
        print_block(made)
    for _, sentence in verdicts.values():
        if sentence:
            out.print(Text(sentence, overflow="fold"))
    if any(sentence for _, sentence in verdicts.values()):
        out.print()


def _numbers_of(
    records: Sequence[ModuleRecord], roles: Sequence[str], verdicts: Mapping[str, tuple[str, str]]
) -> Table:
    """Those of some roles, with the verdict on these alone; how alike all roles move is told of all."""
    groups = {role: [record for record in records if record.role == role] for role in roles}
    of_these = {name: judge([one for group in groups.values() for one in group]) for name, judge in VERDICTS.items()}
    return _numbers(groups, {**of_these, STEP: verdicts[STEP]})


def _numbers(groups: Mapping[str, Sequence[ModuleRecord]], verdicts: Mapping[str, tuple[str, str]]) -> Table:
    """One column a role, one row a number, with the verdict on it; ranges run over all layers."""
    made = table("", *map(symbol, groups), "")
    on_grid = any(record.grid_error is not None for group in groups.values() for record in group)
    for name, tell in _NUMBERS.items():
        if name in _OF_GRID and not on_grid:
            continue
        word, sentence = verdicts.get(name, ("", ""))
        numbers = [tell(list(group)) for group in groups.values()]
        made.add_row(name, *numbers, Text(word, "yellow" if sentence else "green"))
    return made


def _show_biases(found: BiasList, dry_run: bool) -> None:
    """How many there are, and where the list is."""
    where = "nothing written (dry run)" if dry_run else found.folder
    out.print(f"{len(found.biases)} biases, {found.count:,} of {found.total:,} parameters: {where}", soft_wrap=True)
