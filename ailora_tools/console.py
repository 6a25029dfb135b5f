"""The only room that knows rich: tables on stdout, progress, notices and errors on stderr."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .errors import AiloraError
from .metrics.definitions import BY_KEY
from .report.words import matrix, number, ranges

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn, Task, TaskID

    from .checkpoint.files import Origin
    from .checkpoint.transfer import Traffic
    from .output.manifest import ModuleRecord
    from .targets.projections import Target
    from .verbs.initialize import Initialization
    from .verbs.inspect import Inspection
    from .verbs.verify import Verification

_FINDINGS = 6
_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR_WIDTH = 60
_PIPED_WIDTH = 200  # wide enough that no table folds where there is no terminal to fit


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPED_WIDTH)


_out, _err = _console(stderr=False), _console(stderr=True)
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def show_error(error: AiloraError) -> None:
    """The problem in red, what to do below it."""
    _err.print(Text.assemble(("error: ", "bold red"), error.problem), soft_wrap=True)
    if error.hint:
        _err.print(Text(error.hint), soft_wrap=True)


def show_interrupted() -> None:
    """How to go on after Ctrl-C."""
    _err.print("Interrupted. Run the same command with --resume to go on.", style="yellow")


def size(nbytes: float) -> str:
    """1_234_567_890 -> '1.23 GB' (GB = 10^9 bytes)."""
    unit, name = next(((unit, name) for unit, name in _SIZES if nbytes >= unit), (1, "bytes"))
    return f"{nbytes / unit:.3g} {name}" if unit > 1 else f"{int(nbytes)} bytes"


def show_inspection(found: Inspection, quiet: bool) -> None:
    """The plan as a table, layers of one kind in one row."""
    plan, checkpoint = found.plan, found.checkpoint
    if not quiet:
        _notices(plan.notices)
    share = plan.read_bytes / checkpoint.nbytes
    _out.print(_origin(checkpoint.origin), soft_wrap=True)
    shards = f"{len(checkpoint.headers)} file{'s' if len(checkpoint.headers) > 1 else ''}"
    _out.print(f"{plan.family} (model type {plan.model_type or 'not stated'}), {shards}, {size(checkpoint.nbytes)}")
    _print_block(_target_table(plan.targets))
    _out.print(
        f"To read: {size(plan.read_bytes)} of {size(checkpoint.nbytes)} ({share:.1%}). "
        f"Working memory: about {size(found.working_memory)} beside Python and torch."
    )
    if checkpoint.files.traffic is not None:
        _out.print(f"That takes {_durations(plan.read_bytes)}.")


def show_initialization(result: Initialization) -> None:
    """What was moved and how well it holds, role by role; then what to do next."""
    operation = result.operation
    if result.manifest is None:
        _print_block(_target_table(operation.plan.targets))
        _out.print(f"Dry run: {size(operation.nbytes)} would be written to {result.folder}.", soft_wrap=True)
        return
    _print_block(_number_table(result.manifest.modules))
    base = str(result.folder) if result.manifest.base else operation.checkpoint.location
    where = Table.grid(padding=(0, 2))
    where.add_row("base", Text(base, overflow="fold"))
    where.add_row("adapter", Text(str(result.adapter), overflow="fold"))
    if result.manifest.offset:
        where.add_row("frozen", Text(str(result.offset), overflow="fold"))
    where.add_row("check it", Text(f"ailora-tools verify {result.folder}", overflow="fold"))
    where.add_row(
        "load it", Text(f"PeftModel.from_pretrained(base, {str(result.adapter)!r}, is_trainable=True)", overflow="fold")
    )
    _out.print(where)


def show_verification(result: Verification) -> None:
    """One row a check, then the verdict and what it rests on."""
    table = _table("", "check", "found")
    for check in result.checks:
        sign = Text("✔", style="green") if check.holds else Text("✘", style="bold red")
        table.add_row(sign, check.name, Text(check.detail, overflow="fold"))
    _out.print(table)
    basis = f"compared with the source at {result.source}" if result.source else "from hashes alone: no source at hand"
    verdict = Text("holds", style="bold green") if result.holds else Text("does not hold", style="bold red")
    _out.print(Text(f"{result.folder} ") + verdict + Text(f" ({basis})."), soft_wrap=True)


def show_analysis(document: Mapping[str, Any], report: Path) -> None:
    """The findings, a line of each metric over the layers, and where the report lies."""
    model = document["model"]
    title = " against ".join([model["name"], *(other["name"] for other in document["against"])])
    _out.print(Text(title, style="bold"), soft_wrap=True)
    _out.print(f"{model['family']}, {len(document['matrices'])} matrices, {size(model['bytes_read'])} read")
    _out.print()
    for finding in document["findings"][:_FINDINGS]:
        line = Table.grid(padding=(0, 1))
        line.add_row(Text("•", style="cyan"), Text(finding["text"], overflow="fold"))
        _out.print(line)
    rest = len(document["findings"]) - _FINDINGS
    if rest > 0:
        _out.print(f"  {rest} more in the report.", style="dim")
    _print_block(_metric_table(document))
    _out.print(Text.assemble("report ", (str(report), "bold")), soft_wrap=True)


def show_traffic(traffic: Traffic | None, quiet: bool) -> None:
    """What really went over the network."""
    if traffic is not None and not quiet:
        again = f", {_count(traffic.retries, 'retry', 'retries')}" if traffic.retries else ""
        _err.print(f"Read {size(traffic.nbytes)} in {_count(traffic.requests, 'request', 'requests')}{again}.")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _origin(origin: Origin) -> Text:
    """The place; of a model on the Hub also the commit."""
    return Text.assemble((origin.text, "bold"), f" at {origin.revision}" if origin.revision else "")


def _durations(nbytes: int) -> str:
    """How long that many bytes take at two usual speeds."""
    slow, fast = (nbytes * 8 / speed for speed in (1e8, 1e9))
    return f"about {_seconds(slow)} at 100 Mbit/s, {_seconds(fast)} at 1 Gbit/s"


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.2g} s"
        if seconds < 99.5
        else f"{seconds / 60:.0f} min"
        if seconds < 5970
        else f"{seconds / 3600:.1f} h"
    )


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


@contextmanager
def progress(*, quiet: bool, verbose_notices: bool) -> Iterator[_Progress]:
    """A bar on stderr while a verb runs; only notices where stderr is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    meter = _Meter()
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               meter.column(), TextColumn("[dim]{task.fields[label]}"))  # fmt: skip
    with Bar(*columns, console=_err, transient=True, disable=quiet or not _err.is_terminal) as bar:
        yield _Progress(bar, verbose_notices, meter)


class _Meter:
    """Bytes that came over the network, and how many a second since the last look but a few."""

    def __init__(self) -> None:
        self.arrived: Callable[[], int] | None = None
        self.total = 0
        self._looks: deque[tuple[float, int]] = deque(maxlen=50)

    def column(self) -> ProgressColumn:
        from rich.progress import ProgressColumn

        meter = self

        class Column(ProgressColumn):
            max_refresh = 0.1

            def render(self, task: Task) -> Text:
                return Text(meter.text(), style="cyan")

        return Column()

    def text(self) -> str:
        """Nothing as long as nothing is read from the network."""
        if self.arrived is None:
            return ""
        self._looks.append((monotonic(), self.arrived()))
        (then, before), (now, after) = self._looks[0], self._looks[-1]
        rate = f", {size((after - before) / (now - then))}/s" if now > then else ""
        return f"{size(after)} of {size(self.total)}{rate}"


class _Progress:
    """`progress.Progress` drawn by rich."""

    def __init__(self, bar: Bar, verbose: bool, meter: _Meter) -> None:
        self._bar, self._verbose, self._meter = bar, verbose, meter
        self._task: TaskID | None = None

    def start(self, stage: str, total: int, done: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(stage, total=total, completed=done, label="")

    def advance(self, label: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, advance=1, label=escape(label))

    def reading(self, arrived: Callable[[], int], nbytes: int, total: int) -> None:
        self._meter.arrived, self._meter.total = arrived, nbytes
        self.notice(f"reading {size(nbytes)} of {size(total)} over the network: {_durations(nbytes)}")

    def notice(self, text: str) -> None:
        if self._verbose:
            _notices([text])


def _notices(texts: Iterable[str]) -> None:
    for text in texts:
        _err.print(Text.assemble(("note: ", "cyan"), text), soft_wrap=True)


def _print_block(table: Table) -> None:
    _out.print()
    _out.print(table)
    _out.print()


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
