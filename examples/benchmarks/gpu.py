"""The surgery on a CUDA device against the CPU: same result, and how long each takes.

    python examples/benchmarks/gpu.py [--device cuda:0] [--runs 3]

For shapes of Llama-3-8B and Llama-2-7B in bfloat16: A and B from the device must span the same subspaces as
those from the CPU (worst cosine), the residuals must reconstruct W equally well, and a stream of matrices is
timed on both. Exits with 1 if a result differs, and says so if there is no such device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import describe, write_report
from torch import Tensor

from ailora_tools.surgery.decompose import Decomposition, Recipe, decompose

SHAPES = {
    "Llama-3-8B Q": (4096, 4096, "principal"),
    "Llama-3-8B V": (1024, 4096, "minor"),
    "Llama-2-7B V": (4096, 4096, "minor"),
}
RANK, DECAY = 16, 0.3
WANTED_COSINE, WANTED_ERROR_RATIO = 0.99999, 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here: nothing was checked.")
    rows = [compare(name, torch.device(options.device), options.runs) for name in SHAPES]
    report = {"machine": describe() | {"device": torch.cuda.get_device_name(options.device)}, "results": rows}
    write_report("gpu", report, table(rows))
    if not all(row["agree"] for row in rows):
        sys.exit("CPU and device disagree.")


def compare(name: str, device: torch.device, runs: int) -> dict[str, Any]:
    """One shape on both devices."""
    rows, columns, rule = SHAPES[name]
    W = decaying(rows, columns)
    recipe = Recipe(rule, RANK, 1.0, torch.float32, torch.bfloat16, "auto", 0, name)
    here, cpu_seconds = timed(lambda: decompose(W, recipe), runs, torch.device("cpu"))
    W_there = W.to(device)
    there, device_seconds = timed(lambda: decompose(W_there, recipe).cpu(), runs, device)
    cosine = min(worst_cosine(here.B, there.B), worst_cosine(here.A.T, there.A.T))
    ratio = there.numbers.reconstruction_error / here.numbers.reconstruction_error
    return {
        "name": name,
        "cpu_seconds": cpu_seconds,
        "device_seconds": device_seconds,
        "cpu_route": here.numbers.route,
        "device_route": there.numbers.route,
        "worst_cosine": cosine,
        "gap": here.numbers.gap,
        "error_ratio": ratio,
        "agree": cosine >= WANTED_COSINE and ratio <= WANTED_ERROR_RATIO,
    }


def timed(work: Callable[[], Decomposition], runs: int, device: torch.device) -> tuple[Decomposition, float]:
    """The result and the median seconds, after one run that is not counted."""
    result, seconds = work(), []
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def decaying(rows: int, columns: int) -> Tensor:
    """(rows, columns) bfloat16 with singular values i^-0.3."""
    generator = torch.Generator().manual_seed(rows + columns)
    rank = min(rows, columns)
    U = torch.linalg.qr(torch.randn(rows, rank, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(columns, rank, generator=generator))[0]
    return ((U * torch.arange(1, rank + 1) ** -DECAY) @ V.T).to(torch.bfloat16)


def worst_cosine(X: Tensor, Y: Tensor) -> float:
    """Of the principal angles between the spans of the columns."""
    X, Y = (torch.linalg.qr(M.double())[0] for M in (X, Y))
    return float(torch.linalg.svdvals(X.T @ Y).min())


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| matrix | CPU | device | times faster | worst cosine | agree |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        times = row["cpu_seconds"] / row["device_seconds"]
        seconds = f"{row['cpu_seconds']:.3f} s | {row['device_seconds']:.3f} s"
        lines.append(f"| {row['name']} | {seconds} | {times:.1f} | {row['worst_cosine']:.7f} | {row['agree']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
