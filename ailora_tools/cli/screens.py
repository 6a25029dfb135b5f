"""What several screens share: messages, tables, lists of facts, ranges of numbers. Results go to stdout, all else to
stderr; `terminal` has the consoles, the bar and the notices."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from ..errors import AiloraError
from ..methods import role_order, symbol
from ..output.spans import json_text
from ..report.stacks import in_blocks, in_order
from ..report.words import ranges, size
from .terminal import OBEYED, err, out

if TYPE_CHECKING:
    from ..checkpoint.transfer import Traffic
    from ..targets.projections import Target

_Kind = tuple[str, tuple[int, str], str, tuple[int, int], str]  # stack, role, pattern, shape, dtype: a row of targets


def show_error(error: AiloraError) -> None:
    """The problem in red, what to do below it."""
    err.print(Text.assemble(("error: ", "bold red"), error.problem), soft_wrap=True)
    if error.hint:
        err.print(Text(error.hint), soft_wrap=True)


def show_interrupted(resumable: bool, told: str = "") -> None:
    """How to go on after Ctrl-C; told: what a verb has to say of it by itself."""
    again = told or ("Run the same command with --resume to go on." if resumable else "Nothing was written.")
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
    """A table of projections, layers of one kind in one row; of a UNet the blocks, numbered through the model."""
    held = list(targets)
    blocks = in_blocks((target.stack, target.layer) for target in held)
    block = table("role", "blocks" if blocks else "layers", "tensor", "stored as")
    groups: dict[_Kind, dict[int, Target]] = {}
    for target in held:
        stack, number = (blocks or {}).get((target.stack, target.layer), (target.stack, target.layer))
        pattern = re.sub(r"\.\d+(?=\.)", ".*", target.tensor) if blocks else _pattern(target)
        kind = (stack, role_order(target.role), pattern, target.shape, target.stored_as)
        groups.setdefault(kind, {})[number] = target
    order = in_order(stack for stack, *_ in groups)
    for kind in sorted(groups, key=lambda kind: (order.index(kind[0]), kind[1], min(groups[kind]))):
        first = next(iter(groups[kind].values()))
        name = " ".join(part for part in (symbol(first.role), kind[0]) if part)
        whole = f", part of {_sides(first.stored.shape)}" if first.part else ""
        stored = f"{_sides(first.shape)} {first.stored_as}{whole}"
        block.add_row(name, ranges(groups[kind]), Text(kind[2], overflow="fold"), stored)
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
    """The name with `{layer}` for the number of the layer: the first such number, unless the stack's name holds it."""
    parts, stack = target.tensor.split("."), [part for part in target.stack.split(".") if part]
    places = [at for at, part in enumerate(parts) if part == str(target.layer)]
    fits = (at for at in places if [*parts[:at], *parts[at + 1 :]][: len(stack)] == stack)
    if not places:
        return target.tensor
    at = next(fits, places[0])
    return ".".join([*parts[:at], "{layer}", *parts[at + 1 :]])


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
