"""`ailora-tools init` by one process and by several of torchrun: CPU seconds of the slowest, and the same bytes.

    python examples/benchmarks/many.py [--layers 16] [--ranks 2]

A checkpoint of Llama-3.2-1B's shape (as in init_vs_peft.py) with its base, and ten 3072 x 3072 matrices of noise, the
dearest kind, without one. CPU seconds of a process count loading torch; wall time says something only where as many
cores are free as there are processes. The second table is no measurement of a whole model: it spreads what one matrix
of each kind took, on one thread, over all of them, each taken by the next free process, dearest first.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from init_vs_peft import build
from machine import describe, write_report
from safetensors.torch import save_file

SIDE, MATRICES = 3072, 10
START = 1.5  # CPU seconds until torch is loaded
# Layers; CPU seconds of W^Q (singular values i^-0.3, noise) and of W^V, measured on files of these shapes with real
# data in two layers: 8192 x 8192 and 1024 x 8192, 16384 x 16384 and 1024 x 16384.
MODELS = {"Llama-3-70B": (80, (2.8, 10.6), 0.7), "Llama-3.1-405B": (126, (13.1, 45.9), 1.0)}
PROCESSES = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = compare(Path(scratch), options.layers, options.ranks)
    write_report("many", report, table(report))


def compare(scratch: Path, layers: int, ranks: int) -> dict[str, Any]:
    """Both models by one process and by `ranks`, with the bytes compared."""
    report: dict[str, Any] = {"machine": describe(), "layers": layers, "ranks": ranks, "runs": {}}
    for name, source, extra in models(scratch, layers):
        one = measured(scratch, [sys.executable], source, extra)
        wanted = weights(scratch / "out")
        gang = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        many = measured(scratch, [sys.executable, *gang], source, extra)
        report["runs"][name] = {"one": one, "many": many, "same": weights(scratch / "out") == wanted}
        shutil.rmtree(source)
    return report


def models(scratch: Path, layers: int) -> Iterator[tuple[str, Path, list[str]]]:
    """Name, folder, and what else `init` is told."""
    yield f"Llama-3.2-1B's shape, {layers} layers, with base", build(scratch / "one", layers), []
    folder = scratch / "ten"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    noise = {
        f"model.layers.{layer}.self_attn.{leaf}_proj.weight": torch.randn(SIDE, SIDE, generator=generator).bfloat16()
        for layer in range(MATRICES // 2)
        for leaf in "qv"
    }
    save_file(noise, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "num_hidden_layers": MATRICES // 2, "hidden_size": SIDE}
    (folder / "config.json").write_text(json.dumps(config))
    yield f"{MATRICES} matrices {SIDE} x {SIDE}, no base", folder, ["--no-base"]


def measured(scratch: Path, python: Sequence[str], source: Path, extra: Sequence[str]) -> dict[str, Any]:
    """CPU seconds of each process, and wall seconds of the whole."""
    told, out = scratch / "told", scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(told, ignore_errors=True)
    told.mkdir()
    call = ["init", str(source), "--rank", "16", "-o", str(out), "--quiet", *extra]
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOLD": str(told)}
    subprocess.run([*python, __file__, "--process", *call], check=True, env=environment, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - began
    found = [json.loads(path.read_text()) for path in sorted(told.iterdir())]
    return {"cpu": found, "wall": round(wall, 1)}


def process(call: list[str]) -> None:
    """The command line in this process, whose costs are written down at its end."""
    sys.argv = ["ailora-tools", *call]
    try:
        runpy.run_module("ailora_tools", run_name="__main__")
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        Path(os.environ["TOLD"], os.environ.get("RANK", "0")).write_text(str(round(used.ru_utime + used.ru_stime, 2)))


def weights(folder: Path) -> dict[str, bytes]:
    """Everything but the manifest, which tells how many processes there were."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "ailora.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def spread(costs: Sequence[float], processes: int) -> float:
    """Seconds of the slowest, where each takes the dearest matrix that is left."""
    busy = [START] * processes
    for cost in sorted(costs, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + cost)
    return max(busy)


def table(report: dict[str, Any]) -> str:
    """What was measured, and what follows from single matrices for larger models."""
    lines = [
        f"| `init` | CPU s, one process | CPU s, each of {report['ranks']} | same bytes | wall s |",
        "|---|--:|--:|---|--:|",
    ]
    for name, run in report["runs"].items():
        each, wall = (
            " + ".join(f"{cpu:.1f}" for cpu in run["many"]["cpu"]),
            f"{run['one']['wall']} → {run['many']['wall']}",
        )
        lines.append(f"| {name} | {run['one']['cpu'][0]:.1f} | {each} | {'yes' if run['same'] else 'NO'} | {wall} |")
    lines += ["", "Extrapolated from single matrices, not measured: minutes, one CPU thread a process.", ""]
    lines += [f"| `init --no-base` | {' | '.join(f'{count} at work' for count in PROCESSES)} |"]
    lines += [f"|---|{'--:|' * len(PROCESSES)}"]
    for name, (layers, dear, cheap) in MODELS.items():
        ends = [[spread([cost, cheap] * layers, count) / 60 for cost in dear] for count in PROCESSES]
        lines.append(f"| {name} | {' | '.join(f'{low:.1f} to {high:.1f}' for low, high in ends)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    process(sys.argv[2:]) if sys.argv[1:2] == ["--process"] else main()
