"""The command line: parse, call one verb, print its result. No logic, and no torch until a verb needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ..adapters.trainers import TRAINERS
from ..errors import NumericalError
from ..methods import BITFIT
from . import screens as console
from .options import (
    base_dtype_option,
    device_option,
    factor_dtype_option,
    given,
    guarded,
    method_help,
    method_name,
    output_options,
    source_options,
    target_options,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ailora-tools", prog_name="ailora-tools")
def main() -> None:
    """Start LoRA adapters from the weights of the model, by function.

    The adapter of W^Q gets the principal singular components, the adapter of W^V the minor ones
    (AILoRA, arXiv 2510.08034); what went into the adapter is taken out of the frozen base.

    \b
    Example:
      ailora-tools analyze Qwen/Qwen2.5-0.5B
      ailora-tools init Qwen/Qwen2.5-0.5B --rank 8
      ailora-tools verify Qwen2.5-0.5B-ailora-r8
    """


@main.command()
@click.argument("model", type=str)
@target_options
@source_options
@output_options
@guarded
def inspect(model: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show which tensors of MODEL are W^Q and W^V, reading headers only.

    MODEL is a folder, one .safetensors file, or a Hub id.

    \b
    Example:
      ailora-tools inspect Qwen/Qwen2.5-0.5B
      ailora-tools inspect path/to/model
    """
    from ..verbs.inspect import inspect_checkpoint

    found = inspect_checkpoint(model, **options)
    _print_json(found.to_json()) if as_json else console.show_inspection(found, quiet)
    console.show_traffic(found.checkpoint.files.traffic, quiet)


@main.command(epilog=method_help())
@click.argument("model", type=str, default=".")
@click.option("-r", "--rank", type=int, help="Rank of every adapter.")
@click.option("--ranks", metavar="FILE", help="A rank and an alpha per module, from `analyze --suggest-ranks`.")
@click.option(
    "--method",
    metavar="NAME",
    callback=method_name,
    default="ailora",
    show_default=True,
    help="What the adapters start from: one of the methods below, or a rule for each role.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to write.  [default: <model>-<method>-r<rank>]",
)
@click.option("--alpha", type=int, help="lora_alpha.  [default: the rank, so that the scaling is 1]")
@click.option("--rslora", is_flag=True, help="Scale by alpha / sqrt(rank) instead of alpha / rank.")
@click.option("--dora", is_flag=True, help="Train magnitudes too (DoRA), from the norms of the original's rows.")
@click.option(
    "--bias",
    type=click.Choice(["none", "all", "lora_only"]),
    default="none",
    show_default=True,
    help="Which biases PEFT trains besides A and B.",
)
@factor_dtype_option("--adapter-dtype")
@base_dtype_option("Storage of the touched matrices of the base.")
@click.option(
    "--rounding",
    type=click.Choice(["auto", "nearest", "stochastic"]),
    default="auto",
    show_default=True,
    help="How a 16-bit residual is rounded; auto: to nearest unless that undoes the surgery.",
)
@click.option(
    "--no-base",
    is_flag=True,
    help="Write no base: a frozen second adapter takes its place. For a quantised MODEL, or to save the disk.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@device_option
@target_options
@click.option(
    "--transformers-major",
    type=click.Choice(["auto", "4", "5"]),
    default="auto",
    show_default=True,
    callback=lambda ctx, param, value: None if value == "auto" else int(value),
    help="Whose names of modules the adapter uses; auto: those of the installed version.",
)
@source_options
@click.option("--overwrite", is_flag=True, help="Replace DIR if ailora-tools wrote it.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be written, write nothing.")
@output_options
@guarded
def init(model: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the adapter and the residual base of MODEL.

    MODEL is a folder, one .safetensors file, or a Hub id; default: the current folder. DIR becomes a
    complete checkpoint, with the adapter in DIR/ailora_init for PEFT. The source is never changed.

    \b
    Example:
      ailora-tools init Qwen/Qwen2.5-0.5B --rank 8
      ailora-tools init path/to/model --rank 8
      ailora-tools init path/to/model --rank 16 --method pissa -o model-pissa
    """
    if options["method"] == BITFIT:
        _list_biases(model, as_json, quiet, options)
        return
    if not given("roles"):
        options["roles"] = None  # those of the method
    if options["rank"] is None and options["ranks"] is None:
        raise click.UsageError("Missing option '-r' / '--rank' (or --ranks FILE).")
    from ..verbs.initialize import initialize

    with console.progress(quiet=quiet or as_json, verbose_notices=not quiet) as progress:
        result = initialize(model, progress=progress, **options)
    _print_json(result.to_json()) if as_json else console.show_initialization(result)
    console.show_traffic(result.operation.checkpoint.files.traffic, quiet)


@main.command()
@click.argument("model", type=str)
@click.option(
    "--against",
    metavar="TUNED",
    multiple=True,
    help="A fine-tuned checkpoint or LoRA; may be repeated.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
    help="Where to write.  [default: reports/<model>]",
)  # fmt: skip
@click.option(
    "-r", "--rank", type=int, default=8, show_default=True, help="Of the subspaces and sentences about a rank."
)
@click.option("--heads", is_flag=True, help="Also look at every attention head.")
@click.option(
    "--suggest-ranks", metavar="BUDGET", help="Write ranks.json for an average rank (8) or a number of parameters (2M)."
)
@device_option
@target_options
@source_options
@click.option("--overwrite", is_flag=True, help="Replace DIR if an analysis is in it.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@output_options
@guarded
def analyze(model: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure W^Q and W^V of MODEL in every layer, and write a report.

    MODEL is a folder, one .safetensors file, or a Hub id, of which only the bytes of the projections are read.
    DIR gets report.html, which opens offline, analysis.json and metrics.csv. With --against, the report also tells
    what fine-tuning changed. Exit code 1 if a matrix holds NaN or infinity; the others are reported all the same.

    \b
    Example:
      ailora-tools analyze Qwen/Qwen2.5-0.5B
      ailora-tools analyze path/to/model
      ailora-tools analyze path/to/base --against path/to/tuned -o reports/tuned
    """
    from ..verbs.analyze import analyze as run

    with console.progress(quiet=quiet or as_json, verbose_notices=not quiet) as progress:
        result = run(model, progress=progress, **options)
    _print_json(result.to_json()) if as_json else console.show_analysis(result.document, result.report)
    console.show_traffic(result.traffic, quiet)
    if result.skipped:
        reasons = "; ".join(row["reason"] for row in result.skipped)
        raise NumericalError(f"{len(result.skipped)} matrices were left out: {reasons}")


@main.command()
@click.argument("analysis", metavar="ANALYSIS.json", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: report.html beside it]"
)
@output_options
@guarded
def report(analysis: Path, output: Path | None, as_json: bool, quiet: bool) -> None:
    """Write report.html again from what `analyze` measured.

    \b
    Example:
      ailora-tools report reports/model/analysis.json
    """
    from ..verbs.report import render_report

    written = render_report(analysis, output)
    if as_json:
        _print_json({"report": str(written)})
    elif not quiet:
        click.echo(written)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--source", metavar="MODEL", help="The original model.  [default: the folder that the manifest names]")
@source_options
@output_options
@guarded
def verify(folder: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check that base and adapter in DIR still make the original model.

    Exit code 3 if they do not. Without the original at hand the hashes of the manifest decide.

    \b
    Example:
      ailora-tools verify model-ailora-r8
    """
    from ..verbs.verify import verify as check

    with console.progress(quiet=quiet or as_json, verbose_notices=not quiet) as progress:
        result = check(folder, progress=progress, **options)
    _print_json(result.to_json()) if as_json else console.show_verification(result)
    sys.exit(0 if result.holds else 3)


@main.command()
@click.argument("trained", type=click.Path(path_type=Path))
@click.option(
    "--init", "start", required=True, metavar="DIR", type=click.Path(path_type=Path), help="The folder of `init`."
)
@click.option("-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path), help="Where to write.")
@click.option("-r", "--rank", type=int, help="The best LoRA of this rank.  [default: twice the rank, nothing lost]")
@factor_dtype_option("--dtype")
@click.option("--overwrite", is_flag=True, help="Replace OUT if an adapter is in it.")
@output_options
@guarded
def convert(trained: Path, start: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Turn the adapter in TRAINED into a plain LoRA for the original model.

    TRAINED is what a trainer saved, DIR what `init` wrote; neither is changed and no model is read.

    \b
    Example:
      ailora-tools convert output/checkpoint-100 --init model-ailora-r8 -o plain-lora
      ailora-tools convert output/checkpoint-100 --init model-ailora-r8 --rank 8 -o plain-lora-r8
    """
    from ..verbs.convert import convert as run

    with console.progress(quiet=quiet or as_json, verbose_notices=not quiet) as progress:
        result = run(trained, start, progress=progress, **options)
    _print_json(result.to_json()) if as_json else console.show_conversion(result)


@main.command()
@click.argument("base", type=str)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path), help="Where to write.")
@base_dtype_option("Storage of the changed tensors.")
@device_option
@source_options
@click.option("--overwrite", is_flag=True, help="Replace OUT if a checkpoint is in it.")
@output_options
@guarded
def merge(base: str, adapter: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Add the adapter in ADAPTER to BASE, shard by shard, and write a whole checkpoint.

    BASE is the model that the adapter was trained on: the folder that `init` wrote, or an original for a plain LoRA.

    \b
    Example:
      ailora-tools merge model-ailora-r8 output/checkpoint-100 -o merged
      ailora-tools merge path/to/model plain-lora -o merged
    """
    from ..verbs.merge import merge as run

    with console.progress(quiet=quiet or as_json, verbose_notices=not quiet) as progress:
        result = run(base, adapter, progress=progress, **options)
    _print_json(result.to_json()) if as_json else console.show_merge(result)


@main.command()
@click.argument("adapter", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(list(TRAINERS)), help="Whose format.")
@click.option("-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path), help="Where to write.")
@click.option("--base", metavar="MODEL", help="The model that the adapter is for, whose config.json torchtune needs.")
@click.option("--component", metavar="NAME", help="Of a pipeline: unet, transformer, text_encoder (diffusers).")
@click.option("--overwrite", is_flag=True, help="Replace OUT if such a file is in it.")
@output_options
@guarded
def export(adapter: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the adapter in DIR as torchtune, mlx-lm or diffusers read it.

    DIR is a folder of `init` or any LoRA folder. An adapter at its start still needs its residual base.

    \b
    Example:
      ailora-tools export model-ailora-r8 --to mlx -o mlx-adapter
    """
    from ..verbs.export import export as run

    result = run(adapter, **options)
    if as_json:
        _print_json(result.to_json())
    elif not quiet:
        click.echo(
            f"{result.modules} modules for {result.trainer}: "
            + ", ".join(str(result.folder / name) for name in result.files)
        )


def _list_biases(model: str, as_json: bool, quiet: bool, options: dict[str, Any]) -> None:
    """BitFit has no adapter, and so none of the options that an adapter has."""
    from ..verbs.bitfit import bitfit

    taken = ("output", "overwrite", "dry_run", "revision", "subfolder", "download", "connections")
    if idle := given(*(name for name in options if name not in (*taken, "method"))):
        raise click.UsageError(f"--method bitfit has no adapter, and so no {', '.join(idle)}.")
    found = bitfit(model, **{name: options[name] for name in taken})
    _print_json(found.to_json()) if as_json else console.show_biases(found, options["dry_run"], quiet)


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
