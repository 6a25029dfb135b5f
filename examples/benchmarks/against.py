"""What `analyze --against` costs beside plain `analyze`, matrix by matrix, in CPU seconds of one thread.

    python examples/benchmarks/against.py [--shapes 2048x2048 1024x4096 4096x4096] [--rank 16]

bfloat16 matrices as `noisy` in decompose.py, and a full fine-tune of each: a dense change of 2 % of its noise, rounded
to bfloat16. Plain is everything that `analyze` measures on one matrix; the least of two runs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from decompose import noisy
from machine import describe, write_report
from torch import Tensor

from ailora_tools.analysis.measure import measure
from ailora_tools.linalg.spectrum import spectrum
from ailora_tools.metrics.change import Difference

HEAD = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["2048x2048", "1024x4096", "4096x4096"])
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: compared(*(int(side) for side in name.split("x")), options.rank) for name in options.shapes}
    write_report("against", {"machine": describe(), "rank": options.rank, "rows": rows}, table(rows))


def compared(m: int, n: int, rank: int) -> dict[str, float]:
    W = noisy(m, n, 1)
    change = torch.randn(m, n, generator=torch.Generator().manual_seed(5))
    tuned = (W.float() + 0.02 / n**0.5 * change).bfloat16()

    def difference(W: Tensor) -> Difference:
        delta = tuned.double() - W.double()
        return Difference(delta, tuned, spectrum(delta).S, low_rank=False)

    runs: dict[str, list[Any]] = {"svdvals": [], "plain": [], "against": []}
    for _ in range(2):
        runs["svdvals"].append(timed(lambda: torch.linalg.svdvals(W.float())))
        runs["plain"].append(timed(lambda: measure(W, "W", "q", m // HEAD, rank, [])))
        runs["against"].append(timed(lambda: measure(W, "W", "q", m // HEAD, rank, [difference])))
    return {name: min(seconds) for name, seconds in runs.items()}


def timed(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = ["| matrix | svdvals alone | analyze | with `--against` | times |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, row in rows.items():
        cells = " | ".join(f"{row[way]:.2f}" for way in ("svdvals", "plain", "against"))
        lines.append(f"| {name.replace('x', ' x ')} | {cells} | {row['against'] / row['plain']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
