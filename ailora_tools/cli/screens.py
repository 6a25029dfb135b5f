"""What several screens share: messages, tables, lists of facts, ranges of numbers. Results go to stdout, all else to
stderr; `terminal` has the consoles, the bar and the notices."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from ..errors import AiloraError
from ..methods import role_order
from ..output.spans import json_text
from ..report.words import matrix, ranges, size
from .terminal import OBEYED, err, out

if TYPE_CHECKING:
    from ..checkpoint.transfer import Traffic
    from ..targets.projections import Target


def show_error(error: AiloraError) -> None:
    """The problem in red, what to do below it."""
    err.print(Text.assemble(("error: ", "bold red"), error.problem), soft_wrap=True)
    if error.hint:
        err.print(Text(error.hint), soft_wrap=True)


def show_interrupted(resumable: bool) -> None:
    """How to go on after Ctrl-C."""
    again = "Run the same command with --resume to go on." if resumable else "Nothing was written."
    err.print(f"Interrupted. {again}", style="yellow")


def show_traffic(traffic: Traffic | None, quiet: bool) -> None:
    """What really went over the network."""
    if traffic is not None and not quiet:
        again = f", {_count(traffic.retries, 'retry', 'retries')}" if traffic.retries else ""
        err.print(f"Read {size(traffic.nbytes)} in {_count(traffic.requests, 'request', 'requests')}{again}.")


def print_json(document: Mapping[str, Any]) -> None:
    """The one document of `--json`; what a terminal would obey or stdout cannot hold is escaped."""
    lines = (OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in json_text(document, 2).split("\n"))
    text = "\n".join(lines)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, allow_nan=False)
    click.echo(text)


def table(*headings: str) -> Table:
    """An empty table without lines, in the style of all screens."""
    made = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


def width_of(block: Table) -> int:
    """Columns that it takes if nothing in it is folded."""
    return out.measure(block, options=out.options.update(width=10_000)).maximum


def print_block(block: Table) -> None:
    """A table with an empty line above and below."""
    out.print()
    out.print(block)
    out.print()


def print_facts(facts: Mapping[str, object]) -> None:
    """A line for each: its name, and what it is, unbroken whatever its length, so that it can be copied."""
    width = max(map(len, facts))
    for name, fact in facts.items():
        out.print(Text(f"{name:<{width}}  {fact}"), soft_wrap=True)


def print_code(lines: Sequence[str]) -> None:
    """Lines to be copied as they stand, behind an empty one."""
    for line in ("", *lines) if lines else ():
        out.print(Text(line), soft_wrap=True)


def print_targets(targets: Iterable[Target]) -> None:
    """A table of projections, layers of one kind in one row."""
    block = table("role", "layers", "tensor", "stored as")
    groups: dict[tuple[object, ...], list[Target]] = {}
    for target in sorted(targets, key=lambda target: (target.stack, *role_order(target.role), target.layer)):
        kind = (target.stack, target.role, _pattern(target), target.shape, target.stored_as)
        groups.setdefault(kind, []).append(target)
    for members in groups.values():
        first = members[0]
        name = " ".join(part for part in (matrix(first.role), first.stack) if part)
        whole = f", part of {_sides(first.stored.shape)}" if first.part else ""
        block.add_row(
            name,
            ranges([target.layer for target in members]),
            Text(_pattern(first), overflow="fold"),
            f"{_sides(first.shape)} {first.stored_as}{whole}",
        )
    print_block(block)


def span(values: Iterable[int]) -> str:
    """[4, 8, 8] -> '4-8'; one number where all are equal."""
    ordered = sorted(set(values))
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]}-{ordered[-1]}"


def decimals(values: Iterable[float | None]) -> str:
    """Smallest to largest with three digits, such as '0.0124 … 0.3'; '-' where nothing is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = f"{min(known):.3g}", f"{max(known):.3g}"
    return low if low == high else f"{low} … {high}"


def _pattern(target: Target) -> str:
    return target.tensor.replace(f".{target.layer}.", ".{layer}.", 1)


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
