"""`ailora-tools convert`, `merge` and `verify` against PEFT's ways and `cp -r`, each as a whole process.

    python examples/benchmarks/life.py [--layers 16] [--runs 3]

On a checkpoint of Llama-3.2-1B's shape (as in init_vs_peft.py): the trained adapter is the start with 1 % noise. PEFT
converts with `save_pretrained(..., path_initial_model_for_weight_conversion=...)`, for which it loads the model, and
merges with `merge_and_unload` and `save_pretrained`. Then `convert` alone on an adapter of Llama-2-7B's shape (32
layers, W^Q and W^V 4096 x 4096, rank 16), for which no base exists here and none is needed. `verify` compares the start
with its source, and a start without a base for one layer of Llama-3-70B's shape (8192 x 8192 and 1024 x 8192).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from init_vs_peft import build, measure, write_json
from machine import describe, write_report
from safetensors.torch import load_file, save_file

RANK, WIDE, MANY = 16, 4096, 32
WIDEST = {"q_proj": (8192, 8192), "v_proj": (1024, 8192)}  # of a layer of Llama-3-70B
OURS = [sys.executable, "-m", "ailora_tools"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peft", nargs=4, metavar=("WHAT", "BASE", "TRAINED", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peft:
        return by_peft(*options.peft)
    with tempfile.TemporaryDirectory() as scratch:
        report = compare(Path(scratch), options.layers, options.runs)
    write_report("life", report, table(report))
    return None


def compare(scratch: Path, layers: int, runs: int) -> dict[str, Any]:
    """Every contender `runs` times, in turn."""
    source, start, trained = build(scratch / "source", layers), scratch / "start", scratch / "trained"
    run(["init", str(source), "--rank", str(RANK), "-o", str(start), "--quiet"])
    train(start, trained)
    wide = large_start(scratch)
    train(wide, scratch / "wide-trained")
    out, here = scratch / "out", [sys.executable, str(Path(__file__)), "--peft"]
    commands = {
        "PEFT conversion": [*here, "convert", str(start), str(trained), str(out)],
        "ailora-tools convert": [*OURS, "convert", str(trained), "--init", str(start), "-o", str(out), "--quiet"],
        "ailora-tools convert, 7B shape": [
            *OURS, "convert", str(scratch / "wide-trained"), "--init", str(wide), "-o", str(out), "--quiet",
        ],
        "cp -r": ["cp", "-r", str(start), str(out)],
        "PEFT merge_and_unload": [*here, "merge", str(start), str(trained), str(out)],
        "ailora-tools merge": [*OURS, "merge", str(start), str(trained), "-o", str(out), "--quiet"],
        "ailora-tools verify": [*OURS, "verify", str(start), "--quiet"],
        "ailora-tools verify, no base, 70B shape": [*OURS, "verify", str(widest_start(scratch)), "--quiet"],
    }  # fmt: skip
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            figures[name].append(measure(command))
            print(f"{name}: {figures[name][-1][0]:.1f} s, {figures[name][-1][1]:.0f} MB", file=sys.stderr)
            shutil.rmtree(out, ignore_errors=True)
    rows = [
        {
            "name": name,
            "seconds": statistics.median(seconds for seconds, _ in measured),
            "seconds_all": [round(seconds, 2) for seconds, _ in measured],
            "peak_mb": max(peak for _, peak in measured),
        }
        for name, measured in figures.items()
    ]
    return {"machine": describe(), "layers": layers, "rank": RANK, "runs": runs, "results": rows}


def run(arguments: list[str]) -> None:
    subprocess.run([*OURS, *arguments], check=True, stdout=subprocess.DEVNULL)


def large_start(scratch: Path) -> Path:
    """W^Q and W^V of Llama-2-7B's shape and nothing else, through `init --no-base`."""
    folder, generator = scratch / "wide", torch.Generator().manual_seed(1)
    folder.mkdir()
    for layer in range(MANY):
        tensors = {
            f"model.layers.{layer}.self_attn.{name}.weight": torch.empty(WIDE, WIDE, dtype=torch.bfloat16).normal_(
                0, 0.02, generator=generator
            )
            for name in ("q_proj", "v_proj")
        }
        save_file(tensors, folder / f"model-{layer + 1:05d}-of-{MANY:05d}.safetensors", {"format": "pt"})
    names = {
        f"model.layers.{layer}.self_attn.{name}.weight": f"model-{layer + 1:05d}-of-{MANY:05d}.safetensors"
        for layer in range(MANY)
        for name in ("q_proj", "v_proj")
    }
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})
    write_json(folder / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    # The method plays no part in how long converting takes; the principal components are found fastest.
    start = scratch / "wide-start"
    run(["init", str(folder), "--rank", str(RANK), "--method", "pissa", "--no-base", "-o", str(start), "--quiet"])
    shutil.rmtree(folder)
    return start


def widest_start(scratch: Path) -> Path:
    """One layer of Llama-3-70B's shape and what `init --no-base` makes of it, both left where they are."""
    folder, generator = scratch / "widest", torch.Generator().manual_seed(3)
    folder.mkdir()
    tensors = {
        f"model.layers.0.self_attn.{name}.weight": torch.empty(shape, dtype=torch.bfloat16).normal_(
            0, 0.02, generator=generator
        )
        for name, shape in WIDEST.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    start = scratch / "widest-start"
    run(["init", str(folder), "--rank", str(RANK), "--method", "pissa", "--no-base", "-o", str(start), "--quiet"])
    return start


def train(start: Path, trained: Path) -> None:
    """The start with 1 % noise on every factor."""
    shutil.copytree(start / "ailora_init", trained)
    generator = torch.Generator().manual_seed(2)
    factors = load_file(trained / "adapter_model.safetensors")
    moved = {
        key: value + 0.01 * value.std() * torch.randn(value.shape, generator=generator)
        for key, value in factors.items()
    }
    save_file(moved, trained / "adapter_model.safetensors", {"format": "pt"})


def by_peft(what: str, base: str, trained: str, out: str) -> None:
    """PEFT's documented ways, in the dtype of the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(model, trained)
    if what == "convert":
        # PEFT writes into the folder of the start, and takes it by a name without a slash at its end.
        shutil.copytree(Path(base) / "ailora_init", Path(out).with_name("start-copy"), dirs_exist_ok=True)
        start = str(Path(out).with_name("start-copy"))
        adapted.save_pretrained(out, path_initial_model_for_weight_conversion=start)
    else:
        adapted.merge_and_unload().save_pretrained(out)


def table(report: dict[str, Any]) -> str:
    lines = ["| whole process | wall time | peak memory |", "| --- | ---: | ---: |"]
    lines += [f"| {row['name']} | {row['seconds']:.1f} s | {row['peak_mb']:.0f} MB |" for row in report["results"]]
    lines.append(
        f"\n{report['layers']} layers of Llama-3.2-1B's shape in bfloat16, rank {report['rank']}, and an adapter of "
        f"Llama-2-7B's shape; median of {report['runs']} runs, peak the largest."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
