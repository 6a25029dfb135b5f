"""`ailora-tools analyze`: its options and its screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from ..errors import NumericalError
from ..methods import symbol
from ..report.chosen import WHAT, in_order, why
from ..report.rows import read_rows
from ..report.words import size
from ..team.place import read_place
from .command import Command, option
from .course import metric_lines
from .options import (
    MODEL,
    device_option,
    matrix_options,
    memory_option,
    message_options,
    output_option,
    overwrite_options,
    reading_options,
    resume_option,
    team_options,
)
from .screens import print_block, print_code, print_json, show_traffic, table
from .terminal import out, progress

_ANALYSIS = "Analysis"
_EXAMPLES = (
    "analyze Qwen/Qwen2.5-0.5B",
    "analyze path/to/model",
    "analyze path/to/base --against path/to/tuned -o reports/tuned",
)
_FINDINGS = 6  # that are shown; the rest stands in the report
_MODULES = 10  # likewise


@click.command(cls=Command, together=True, examples=_EXAMPLES)
@click.argument("model", type=MODEL)
@option(
    "--against",
    group=_ANALYSIS,
    metavar="TUNED",
    type=MODEL,
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
    help="Also write ranks.json for `init --ranks`. BUDGET is an average rank (8) or a number of parameters (2M). "
    "Without --against it goes by the spectrum of MODEL, which has not been shown to predict the rank training needs.",
)
@option(
    "--suggest-targets",
    group=_ANALYSIS,
    metavar="SHARE",
    help="Also name this share of the modules (0.2), or so many (24), as a list for a trainer: those with the smallest "
    "condition numbers, or with --against those that changed most.",
)
@matrix_options
@reading_options("MODEL")
@output_option("DIR", "Folder to write.  [default: reports/<model>]")
@overwrite_options("Replace DIR if an analysis is in it.")
@device_option
@memory_option
@resume_option
@team_options
@message_options
def analyze(model: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure W^Q and W^V of MODEL in every layer, and write a report.

    MODEL is a folder, one .safetensors file, or a Hub id, of which only the bytes of the projections are read.
    DIR gets report.html, which opens offline, analysis.json and metrics.csv. With --against, the report also tells
    what fine-tuning changed. Exit code 1 if a matrix holds NaN or infinity; the others are reported all the same.
    """
    with progress(as_json, quiet) as bar:
        from ..verbs.analyze import analyze as run  # within: it may take a second, and something is to be seen

        result = run(model, progress=bar, **options)
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
    _print_findings(document["findings"])
    out.print()
    for line in metric_lines(document, out.width):
        out.print(line)
    out.print()
    out.print(Text.assemble("report ", (str(report), "bold")), soft_wrap=True)
    if document.get("targets"):
        _print_targets(document)


def _print_targets(document: Mapping[str, Any]) -> None:
    """Why these, the first of them with their numbers, and the lists to copy."""
    targets = document["targets"]
    out.print()
    out.print(Text(why(document)), soft_wrap=not out.is_terminal)
    block = table("", WHAT[targets["basis"]], "module")
    chosen = list(in_order(read_rows(document), targets))
    for held, module, score in chosen[:_MODULES]:
        names = ", ".join(" ".join(filter(None, (symbol(row.role), row.stack, str(row.layer)))) for row in held)
        block.add_row(names, score, Text(module, overflow="fold"))
    print_block(block)
    if chosen[_MODULES:]:
        out.print(f"  {len(chosen) - _MODULES} more in the report.", style="dim")
    print_code(_targets(targets))


def _targets(found: Mapping[str, Any]) -> list[str]:
    """The list for PEFT, in Python, and for Axolotl, in YAML."""
    modules = json.dumps(found["target_modules"])
    count = f"{len(found['modules'])} of {found['of']} modules"
    by = "the smallest condition numbers" if found["basis"] == "condition" else "the largest changes"
    return [
        f"# {count}, those of {by}",
        f"target_modules={modules}  # PEFT",
        f"lora_target_modules: {modules}  # Axolotl",
    ]


def _print_findings(findings: Sequence[Mapping[str, Any]]) -> None:
    """The first ones, their headlines bold; what was looked for and not seen comes last."""
    for finding in sorted(findings, key=lambda finding: finding.get("kind") == "none")[:_FINDINGS]:
        text = Text(finding["text"], overflow="fold")
        text.stylize("bold", 0, len(finding.get("headline") or ""))
        if out.is_terminal:
            line = Table.grid(padding=(0, 1))
            line.add_row(Text("•", style="cyan"), text)
            out.print(line)
        else:
            out.print(Text("• ") + text, soft_wrap=True)
    if findings[_FINDINGS:]:
        out.print(f"  {len(findings) - _FINDINGS} more in the report.", style="dim")
