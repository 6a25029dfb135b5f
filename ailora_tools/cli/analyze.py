"""`ailora-tools analyze`: its options and its screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from ..errors import NumericalError
from ..metrics.definitions import BY_KEY
from ..report.rows import Row, change_metric, of_role, once, read_rows, roles
from ..report.words import matrix, number, size
from ..team.place import read_place
from .command import Command, option
from .options import (
    device_option,
    matrix_options,
    message_options,
    output_option,
    overwrite_options,
    reading_options,
    resume_option,
    team_options,
)
from .screens import print_block, print_json, show_traffic, table
from .terminal import out, progress

_ANALYSIS = "Analysis"
_EXAMPLES = (
    "analyze Qwen/Qwen2.5-0.5B",
    "analyze path/to/model",
    "analyze path/to/base --against path/to/tuned -o reports/tuned",
)
_FINDINGS = 6  # that are shown; the rest stands in the report
_METRICS = ("effective_rank_share", "outlier_share", "alpha")
_CHANGE_METRICS = ("relative_change", "delta_above")
_BARS = "▁▂▃▄▅▆▇█"
_BARS_WIDTH = 60


@click.command(cls=Command, together=True, examples=_EXAMPLES)
@click.argument("model", type=str)
@option(
    "--against",
    group=_ANALYSIS,
    metavar="TUNED",
    multiple=True,
    help="Fine-tuned checkpoint or LoRA of MODEL, whose change is measured; may be given several times.",
)
@option(
    "-r",
    "--rank",
    group=_ANALYSIS,
    type=int,
    default=8,
    show_default=True,
    help="Rank used for subspace overlaps and for the findings.",
)
@option("--heads", group=_ANALYSIS, is_flag=True, help="Also measure every attention head by itself.")
@option(
    "--suggest-ranks",
    group=_ANALYSIS,
    metavar="BUDGET",
    help="Also write ranks.json for `init --ranks`. BUDGET is an average rank (8) or a number of parameters (2M).",
)
@matrix_options
@reading_options("MODEL")
@output_option("DIR", "Folder to write.  [default: reports/<model>]")
@overwrite_options("Replace DIR if an analysis is in it.")
@device_option
@resume_option
@team_options
@message_options
def analyze(model: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure W^Q and W^V of MODEL in every layer, and write a report.

    MODEL is a folder, one .safetensors file, or a Hub id, of which only the bytes of the projections are read.
    DIR gets report.html, which opens offline, analysis.json and metrics.csv. With --against, the report also tells
    what fine-tuning changed. Exit code 1 if a matrix holds NaN or infinity; the others are reported all the same.
    """
    from ..verbs.analyze import analyze as run

    with progress(as_json, quiet) as bar:
        result = run(model, progress=bar, **options)
    if not read_place().leads:
        return
    if not read_place().leads:
        return
    print_json(result.to_json()) if as_json else _show(result.document, result.report)
    show_traffic(result.traffic, quiet)
    if result.skipped:
        reasons = "; ".join(row["reason"] for row in result.skipped)
        raise NumericalError(f"{len(result.skipped)} matrices were left out: {reasons}")


def _show(document: Mapping[str, Any], report: Path) -> None:
    """The findings, a line of each metric over the layers, and where the report lies."""
    model = document["model"]
    title = " against ".join([model["name"], *(other["name"] for other in document["against"])])
    out.print(Text(title, style="bold"), soft_wrap=True)
    out.print(f"{model['family']}, {len(document['matrices'])} matrices, {size(model['bytes_read'])} read")
    out.print()
    _print_findings([finding["text"] for finding in document["findings"]])
    print_block(_metrics(document))
    out.print(Text.assemble("report ", (str(report), "bold")), soft_wrap=True)


def _print_findings(texts: Sequence[str]) -> None:
    for text in texts[:_FINDINGS]:
        line = Table.grid(padding=(0, 1))
        line.add_row(Text("•", style="cyan"), Text(text, overflow="fold"))
        out.print(line)
    if texts[_FINDINGS:]:
        out.print(f"  {len(texts) - _FINDINGS} more in the report.", style="dim")


def _metrics(document: Mapping[str, Any]) -> Table:
    """One row a metric and role: median and range, copies counted once, and its course over all layers as bars."""
    made = table("metric", "", "median", "range", "over the layers")
    for column in (2, 3):
        made.columns[column].justify = "right"
    rows = read_rows(document)
    for key, at in _shown(len(document["against"])):
        name = BY_KEY[key].label + (f" ({document['against'][at]['name']})" if at is not None else "")
        for role in roles(rows):
            of, metric = of_role(rows, role), _metric(key, at)
            values = [metric(row) for row in of]
            known = [value for row in once(of, at) if (value := metric(row)) is not None]
            if known:
                span = f"{number(min(known))} … {number(max(known))}"
                bars = Text(_bars(values), style="blue" if role == "q" else "yellow")
                made.add_row(Text(name), matrix(role), number(median(known)), span, bars)
    return made


def _metric(key: str, at: int | None) -> Callable[[Row], float | None]:
    return (lambda row: row.metrics[key]) if at is None else change_metric(at, key)


def _shown(tuned: int) -> Iterator[tuple[str, int | None]]:
    """Keys of metrics, those of each fine-tune with its number first."""
    yield from ((key, at) for at in range(tuned) for key in _CHANGE_METRICS)
    yield from ((key, None) for key in _METRICS)


def _bars(values: Sequence[float | None]) -> str:
    """Eighths of a block from 0 to the largest value; at most 60, each the mean of its neighbours."""
    step = -(-len(values) // _BARS_WIDTH)
    parts = [[value for value in values[low : low + step] if value is not None] for low in range(0, len(values), step)]
    means = [sum(part) / len(part) if part else None for part in parts]
    top = max((value for value in means if value is not None), default=0.0) or 1.0
    return "".join(" " if value is None else _BARS[min(7, int(8 * max(value, 0) / top))] for value in means)
