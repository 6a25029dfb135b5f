"""The screens: tables on stdout, errors on stderr. `terminal` has the bar, the notices and the consoles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..errors import AiloraError, listed
from ..metrics.definitions import BY_KEY
from ..report.words import matrix, number, ranges, size
from .terminal import durations, err, notices, out
from .terminal import progress as progress

if TYPE_CHECKING:
    from ..checkpoint.files import Origin
    from ..checkpoint.transfer import Traffic
    from ..output.manifest import ModuleRecord
    from ..targets.projections import Target
    from ..verbs.bitfit import BiasList
    from ..verbs.convert import Conversion
    from ..verbs.initialize import Initialization
    from ..verbs.inspect import Inspection
    from ..verbs.merge import Merge
    from ..verbs.verify import Verification

_FINDINGS = 6
_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR_WIDTH = 60


def show_error(error: AiloraError) -> None:
    """The problem in red, what to do below it."""
    err.print(Text.assemble(("error: ", "bold red"), error.problem), soft_wrap=True)
    if error.hint:
        err.print(Text(error.hint), soft_wrap=True)


def show_interrupted(resumable: bool) -> None:
    """How to go on after Ctrl-C."""
    again = "Run the same command with --resume to go on." if resumable else "Nothing was written."
    err.print(f"Interrupted. {again}", style="yellow")


def show_inspection(found: Inspection, quiet: bool) -> None:
    """The plan as a table, layers of one kind in one row."""
    plan, checkpoint = found.plan, found.checkpoint
    if not quiet:
        notices(plan.notices)
    share = plan.read_bytes / checkpoint.nbytes
    out.print(_origin(checkpoint.origin), soft_wrap=True)
    shards = f"{len(checkpoint.headers)} file{'s' if len(checkpoint.headers) > 1 else ''}"
    out.print(f"{plan.family} (model type {plan.model_type or 'not stated'}), {shards}, {size(checkpoint.nbytes)}")
    _print_block(_target_table(plan.targets))
    out.print(
        f"To read: {size(plan.read_bytes)} of {size(checkpoint.nbytes)} ({share:.1%}). "
        f"Working memory: about {size(found.working_memory)} beside Python and torch."
    )
    if checkpoint.files.traffic is not None:
        out.print(f"That takes {durations(plan.read_bytes)}.")


def show_initialization(result: Initialization) -> None:
    """What was moved and how well it holds, role by role; then what to do next."""
    operation = result.operation
    if result.manifest is None:
        _print_block(_target_table(operation.plan.targets))
        out.print(f"Dry run: {size(operation.nbytes)} would be written to {result.folder}.", soft_wrap=True)
        return
    _print_block(_number_table(result.manifest.modules))
    base = str(result.folder) if result.manifest.base else operation.checkpoint.location
    where = Table.grid(padding=(0, 2))
    where.add_row("base", Text(base, overflow="fold"))
    where.add_row("adapter", Text(str(result.adapter), overflow="fold"))
    if result.manifest.offset:
        where.add_row("frozen", Text(str(result.offset), overflow="fold"))
    where.add_row("check it", Text(f"ailora-tools verify {result.folder}", overflow="fold"))
    both = f"both adapters, as {result.folder / 'README.md'} shows"
    one = f"PeftModel.from_pretrained(base, {str(result.adapter)!r}, is_trainable=True)"
    where.add_row("load it", Text(both if result.manifest.offset else one, overflow="fold"))
    out.print(where)


def show_biases(found: BiasList, dry_run: bool, quiet: bool) -> None:
    """How many there are, and where the list is."""
    if not quiet:
        where = "nothing written (dry run)" if dry_run else found.folder
        out.print(f"{len(found.biases)} biases, {found.count:,} of {found.total:,} parameters: {where}", soft_wrap=True)


def show_conversion(result: Conversion) -> None:
    """How well the change is kept, and what to load."""
    errors, lost = ([getattr(module, of) for module in result.modules] for of in ("error", "truncated"))
    ranks = sorted({module.rank for module in result.modules})
    where = Table.grid(padding=(0, 2))
    where.add_row("adapter", Text(str(result.folder), overflow="fold"))
    where.add_row("for", Text(f"{result.base}, the original model", overflow="fold"))
    where.add_row("modules", f"{len(errors)}, rank {_span(ranks)}, scaling 1")
    where.add_row("error", f"at most {max(errors):.1e} of the change ({max(lost):.1e} by the rank)")
    still = sum(not module.changed for module in result.modules)
    if still:
        where.add_row("unchanged", f"{still} of {len(result.modules)} modules are as they started: their part is zero")
    if result.kept:
        where.add_row("kept", Text(listed(result.kept), overflow="fold"))
    out.print(where)
    if max(lost):
        out.print(_truncation(result))


def _truncation(result: Conversion) -> Table:
    """What the rank took from each module."""
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("module", overflow="fold")
    for name in ("rank", "lost by the rank", "stored, all in all"):
        table.add_column(name, justify="right")
    for module in result.modules:
        table.add_row(Text(module.module), str(module.rank), f"{module.truncated:.2%}", f"{module.error:.2%}")
    return table


def show_merge(result: Merge) -> None:
    """What changed most, and where the model is."""
    most = max(result.modules, key=lambda module: module.change)
    where = Table.grid(padding=(0, 2))
    where.add_row("model", Text(str(result.folder), overflow="fold"))
    where.add_row("changed", f"{len(result.modules)} tensors, stored as {', '.join(result.dtypes)}")
    where.add_row("most", Text(f"{most.tensor}: {most.change:.2e} of its norm", overflow="fold"))
    out.print(where)


def show_verification(result: Verification) -> None:
    """One row a check, then the verdict and what it rests on."""
    table = _table("", "check", "found")
    for check in result.checks:
        sign = Text("✔", style="green") if check.holds else Text("✘", style="bold red")
        table.add_row(sign, check.name, Text(check.detail, overflow="fold"))
    out.print(table)
    basis = f"compared with the source at {result.source}" if result.source else "from hashes alone: no source at hand"
    verdict = Text("holds", style="bold green") if result.holds else Text("does not hold", style="bold red")
    out.print(Text(f"{result.folder} ") + verdict + Text(f" ({basis})."), soft_wrap=True)


def show_analysis(document: Mapping[str, Any], report: Path) -> None:
    """The findings, a line of each metric over the layers, and where the report lies."""
    model = document["model"]
    title = " against ".join([model["name"], *(other["name"] for other in document["against"])])
    out.print(Text(title, style="bold"), soft_wrap=True)
    out.print(f"{model['family']}, {len(document['matrices'])} matrices, {size(model['bytes_read'])} read")
    out.print()
    for finding in document["findings"][:_FINDINGS]:
        line = Table.grid(padding=(0, 1))
        line.add_row(Text("•", style="cyan"), Text(finding["text"], overflow="fold"))
        out.print(line)
    rest = len(document["findings"]) - _FINDINGS
    if rest > 0:
        out.print(f"  {rest} more in the report.", style="dim")
    _print_block(_metric_table(document))
    out.print(Text.assemble("report ", (str(report), "bold")), soft_wrap=True)


def show_traffic(traffic: Traffic | None, quiet: bool) -> None:
    """What really went over the network."""
    if traffic is not None and not quiet:
        again = f", {_count(traffic.retries, 'retry', 'retries')}" if traffic.retries else ""
        err.print(f"Read {size(traffic.nbytes)} in {_count(traffic.requests, 'request', 'requests')}{again}.")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _origin(origin: Origin) -> Text:
    """The place; of a model on the Hub also the commit."""
    return Text.assemble((origin.text, "bold"), f" at {origin.revision}" if origin.revision else "")


def _metric_table(document: Mapping[str, Any]) -> Table:
    """One row a metric and role: median, range, and its course over the layers as a row of bars."""
    table = _table("metric", "", "median", "range", "over the layers")
    for column in (2, 3):
        table.columns[column].justify = "right"
    rows = document["matrices"]
    for key, at in _shown(document):
        for role in sorted({row["role"] for row in rows}, key="qvko".index):
            of = [row for row in rows if row["role"] == role]
            values = [(row["metrics"] if at is None else row["changes"][at]["metrics"])[key] for row in of]
            known = [value for value in values if value is not None]
            if known:
                name = BY_KEY[key].label + (f" ({document['against'][at]['name']})" if at is not None else "")
                span = f"{number(min(known))} … {number(max(known))}"
                bars = Text(_bars(values), style="blue" if role == "q" else "yellow")
                table.add_row(Text(name), matrix(role), number(median(known)), span, bars)
    return table


def _shown(document: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    for at in range(len(document["against"])):
        yield from (("relative_change", at), ("delta_above", at))
    yield from ((key, None) for key in ("effective_rank_share", "outlier_share", "alpha"))


def _bars(values: Sequence[float | None]) -> str:
    """Eighths of a block from 0 to the largest value; at most 60, each the mean of its neighbours."""
    step = -(-len(values) // _BAR_WIDTH)
    parts = [[value for value in values[low : low + step] if value is not None] for low in range(0, len(values), step)]
    means = [sum(part) / len(part) if part else None for part in parts]
    top = max((value for value in means if value is not None), default=0.0) or 1.0
    return "".join(" " if value is None else _BLOCKS[min(7, int(8 * max(value, 0) / top))] for value in means)


def _print_block(table: Table) -> None:
    out.print()
    out.print(table)
    out.print()


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def _target_table(targets: Iterable[Target]) -> Table:
    table = _table("role", "layers", "tensor", "stored as")
    groups: dict[tuple[object, ...], list[Target]] = {}
    for target in sorted(targets, key=lambda target: (target.stack, target.role != "q", target.role, target.layer)):
        groups.setdefault((target.stack, target.role, _pattern(target), target.shape, target.stored_as), []).append(
            target
        )
    for members in groups.values():
        first = members[0]
        table.add_row(
            f"W^{first.role.upper()}" + (f" {first.stack}" if first.stack else ""),
            ranges([target.layer for target in members]),
            Text(_pattern(first), overflow="fold"),
            f"{_sides(first.shape)} {first.stored_as}"
            + (f", part of {_sides(first.stored_shape)}" if first.part else ""),
        )
    return table


def _sides(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _pattern(target: Target) -> str:
    return target.tensor.replace(f".{target.layer}.", ".{layer}.", 1)


def _number_table(records: Sequence[ModuleRecord]) -> Table:
    """One column a role, one row a number; ranges run over all layers."""
    roles = sorted({record.role for record in records}, key=lambda role: (role != "q", role))
    table = _table("", *(f"W^{role.upper()}" for role in roles))
    groups = [[record for record in records if record.role == role] for role in roles]
    for name, tell in _NUMBER_ROWS.items():
        table.add_row(name, *(tell(group) for group in groups))
    return table


_NUMBER_ROWS: dict[str, Callable[[list[ModuleRecord]], str]] = {
    "starts from": lambda group: group[0].rule,
    "matrices": lambda group: str(len(group)),
    "rank": lambda group: _span({record.rank for record in group}),
    "singular values moved": lambda group: _decimals([value for record in group for value in record.singular_values]),
    "gap at the cut": lambda group: _decimals([record.gap for record in group]),
    "survival in the base": lambda group: _decimals([record.survival for record in group]),
    "reconstruction error": lambda group: _decimals([record.reconstruction_error for record in group]),
    "first step / lr": lambda group: _decimals([record.motion for record in group]),
    "dead components": lambda group: str(sum(record.dead for record in group)),
    "rounding": lambda group: ", ".join(sorted({record.rounding for record in group})),
}


def _span(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]}-{ordered[-1]}"


def _decimals(values: Iterable[float | None]) -> str:
    """Smallest to largest, three digits."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = f"{min(known):.3g}", f"{max(known):.3g}"
    return low if low == high else f"{low} … {high}"
