"""All singular values of W^Q and W^V: ailora-tools against a loop of `torch.linalg.svdvals` and WeightWatcher.

    python examples/benchmarks/analyze.py [FOLDER]

One run. A checkpoint of Llama-3.2-1B's shape (16 layers, 32 matrices, 2 GB bfloat16) by whole processes: every way
reads the same files and yields all singular values, and only ailora-tools also computes metrics and writes its
report; wall time is the median of REPEATS. Then single matrices inside one process, where start-up does not count.
Results as JSON and tables under reports/benchmarks/.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from init_vs_peft import build
from init_vs_peft import measure as run_measured
from machine import describe, write_report
from safetensors.torch import save_file

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.checkpoint.stream import stream
from ailora_tools.linalg.spectrum import spectrum
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.selection import Selection

REPEATS = 3
MATRICES = 4
SHAPES = ((512, 2048), (1024, 4096), (2048, 2048), (4096, 4096))
LAYERS = 16
LOOP = """
import sys, json, torch
from pathlib import Path
from safetensors import safe_open
for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():
            if name.endswith(("q_proj.weight", "v_proj.weight")):
                torch.linalg.svdvals(tensors.get_tensor(name).float())
"""
GRAM = LOOP.replace(
    "torch.linalg.svdvals(tensors.get_tensor(name).float())",
    "W = tensors.get_tensor(name).double(); torch.linalg.eigvalsh(W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W)",
)
WEIGHTWATCHER = """
import sys, weightwatcher
watcher = weightwatcher.WeightWatcher(model=sys.argv[1])
details = watcher.describe()
ids = [row.layer_id for row in details.itertuples() if row.name.endswith(("q_proj", "v_proj"))
       or row.longname.endswith(("q_proj", "v_proj"))]
assert ids, details
watcher.analyze(layers=ids)
"""


def ways(model: Path, out: Path) -> dict[str, list[str]]:
    python = sys.executable
    return {
        "svdvals loop": [python, "-c", LOOP, str(model)],
        "float64 Gram loop": [python, "-c", GRAM, str(model)],
        "WeightWatcher": [python, "-W", "ignore", "-c", WEIGHTWATCHER, str(model)],
        "ailora-tools analyze": [python, "-m", "ailora_tools", "analyze", str(model), "-o", str(out), "--overwrite"],
    }


def decaying(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """bfloat16, singular values that fall slowly."""
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (0.02 * draw * torch.arange(1, shape[1] + 1) ** -0.3).bfloat16()


def per_matrix(shape: tuple[int, int], folder: Path) -> dict[str, float]:
    """Seconds a matrix inside this process, MATRICES of them, the ways in turn; the least of REPEATS."""
    folder.mkdir()
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(MATRICES)]
    tensors = {name: decaying(shape, seed) for seed, name in enumerate(names)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    checkpoint = open_checkpoint(folder)
    targets = make_plan(checkpoint, Selection(("q",))).targets
    at_once = 2 if min(shape) <= 3072 else 1

    def ours() -> None:
        for _ in stream(checkpoint.files, targets, lambda _, W: spectrum(W), torch.device("cpu"), print, at_once):
            pass

    def gram(W: torch.Tensor) -> torch.Tensor:
        X = W.double()
        return torch.linalg.eigvalsh(X @ X.T if shape[0] <= shape[1] else X.T @ X)

    ways: dict[str, Callable[[], object]] = {
        "svdvals loop": lambda: [torch.linalg.svdvals(W.float()) for W in tensors.values()],
        "float64 Gram loop": lambda: [gram(W) for W in tensors.values()],
        "ailora-tools": ours,
    }
    found = {name: min(timed(way) for _ in range(REPEATS)) / MATRICES for name, way in ways.items()}
    peak = run_measured(
        [sys.executable, "-m", "ailora_tools", "analyze", str(folder), "--roles", "q", "-o", f"{folder}-out"]
    )[1]
    shutil.rmtree(folder)
    return {**found, "peak_mb": peak}


def timed(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def measure(model: Path, out: Path) -> dict[str, dict[str, float]]:
    """Each way in turn, REPEATS times; in turn, so that a slow minute hits all of them."""
    runs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(REPEATS):
        for name, command in ways(model, out).items():
            runs.setdefault(name, []).append(run_measured(command))
            print(f"  {name}: {runs[name][-1][0]:.1f} s", file=sys.stderr)
    return {
        name: {
            "seconds": statistics.median(seconds for seconds, _ in found),
            "peak_mb": max(peak for _, peak in found),
        }
        for name, found in runs.items()
    }


def table(report: dict[str, Any]) -> str:
    whole = report["whole_processes"]
    loop = whole["svdvals loop"]["seconds"]
    lines = ["| Llama-3.2-1B's shape, 32 matrices | whole process | times faster than the loop | peak memory |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for name, value in whole.items():
        ratio = loop / value["seconds"]
        lines.append(f"| {name} | {value['seconds']:.1f} s | {ratio:.1f} | {value['peak_mb']:.0f} MB |")
    lines += ["", "| one matrix | svdvals | float64 Gram | ailora-tools | times faster | peak of `analyze` |",
              "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for shape, value in report["per_matrix"].items():
        ours, theirs = value["ailora-tools"], value["svdvals loop"]
        lines.append(
            f"| {shape} | {theirs:.3f} s | {value['float64 Gram loop']:.3f} s | {ours:.3f} s | {theirs / ours:.1f} | "
            f"{value['peak_mb']:.0f} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    big = folder / "1b"
    if not big.exists():
        build(big, LAYERS)
    single = {f"{m} × {n}": per_matrix((m, n), folder / f"{m}x{n}") for m, n in SHAPES}
    report = {
        "machine": describe(),
        "repeats": REPEATS,
        "whole_processes": measure(big, folder / "report"),
        "per_matrix": single,
    }
    write_report("analyze", report, table(report))


if __name__ == "__main__":
    main()
