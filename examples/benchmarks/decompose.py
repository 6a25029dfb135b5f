"""W^Q and W^V of one layer: `principal` and `minor` against two full SVDs and against torch.svd_lowrank.

    python examples/benchmarks/decompose.py [--rank 16] [--runs 3] [--svd-runs 2] [--no-truth]

bfloat16 matrices of the shapes of Llama-3-8B (Q 4096x4096, V 1024x4096) and Llama-2-7B (both 4096x4096). Each is
Gaussian noise of unit variance / n plus a part of rank 256 with singular values 16 i^-0.4: slow decay over a bulk.
A third layer has no bulk: both spectra are i^-0.5 and the bottom of W^V is flat, the worst case for `minor`.
Two full float32 `torch.linalg.svd` are what PEFT-style code takes, `svd_lowrank(q=r, niter=4 or 16)` is PEFT's
`pissa_niter_4` and `_16`. The truth is the float64 eigenvectors of the float64 Gram matrix of the smaller side.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import describe, write_report
from torch import Tensor

from ailora_tools.linalg.minor import minor
from ailora_tools.linalg.principal import principal

HIDDEN, KV = 4096, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--svd-runs", type=int, default=2)
    parser.add_argument("--truth", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    layers = {
        "Llama-3-8B shape": (noisy(HIDDEN, HIDDEN, 1), noisy(KV, HIDDEN, 2)),
        "Llama-2-7B shape": (noisy(HIDDEN, HIDDEN, 1), noisy(HIDDEN, HIDDEN, 3)),
        "Llama-2-7B shape, flat bottom": (decaying(HIDDEN, 4), decaying(HIDDEN, 5)),
    }
    results = {name: compare(*layer, options) for name, layer in layers.items()}
    report = {"machine": describe(), "options": vars(options), "layers": results}
    write_report("decompose", report, table(results))


def noisy(m: int, n: int, seed: int) -> Tensor:
    """Slowly decaying singular values over a bulk of noise (m, n), bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    count = 256
    S = 16 * torch.arange(1, count + 1) ** -0.4
    left = torch.randn(m, count, generator=generator) / m**0.5
    right = torch.randn(count, n, generator=generator) / n**0.5
    noise = torch.randn(m, n, generator=generator) / n**0.5
    return (noise + (left * S) @ right).bfloat16()


def decaying(n: int, seed: int) -> Tensor:
    """Singular values i^-0.5 with Haar-distributed vectors (n, n), bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for _ in range(2))
    return ((U * torch.arange(1, n + 1) ** -0.5) @ V).bfloat16()


def compare(Q: Tensor, V: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every contender, and the worst cosine of what it finds to the truth."""
    rank = options.rank
    truth = (true_right(Q)[:, -rank:], true_right(V)[:, :rank]) if options.truth else None
    contenders: dict[str, tuple[int, Callable[[], tuple[Tensor, Tensor | None]]]] = {
        "principal(Q) + minor(V)": (options.runs, lambda: (ours(principal, Q, rank), ours(minor, V, rank))),
        "principal(Q)": (options.runs, lambda: (ours(principal, Q, rank), None)),
        "svd_lowrank(Q), niter 4": (options.runs, lambda: (lowrank(Q, rank, 4), None)),
        "svd_lowrank(Q), niter 16": (options.runs, lambda: (lowrank(Q, rank, 16), None)),
        "two full float32 SVDs": (options.svd_runs, lambda: (full(Q)[:, :rank], full(V)[:, -rank:])),
    }
    results: dict[str, Any] = {}
    for name, (runs, work) in contenders.items():
        seconds, found = timed(work, runs)
        cosines = [cosine(*pair) for pair in zip(found, truth or (None, None), strict=True)]
        results[name] = {"seconds": seconds, "cosine_q": cosines[0], "cosine_v": cosines[1]}
    results["ratio"] = results["two full float32 SVDs"]["seconds"] / results["principal(Q) + minor(V)"]["seconds"]
    return results


def ours(rule: Callable[..., Any], W: Tensor, rank: int) -> Tensor:
    right: Tensor = rule(W, rank, torch.Generator().manual_seed(0)).Vh.T
    return right  # (n, r)


def lowrank(W: Tensor, rank: int, niter: int) -> Tensor:
    torch.manual_seed(0)
    return torch.svd_lowrank(W.float(), q=rank, niter=niter)[2].double()  # (n, r)


def full(W: Tensor) -> Tensor:
    return torch.linalg.svd(W.float(), full_matrices=False)[2].T.double()  # (n, min(m, n))


def true_right(W: Tensor) -> Tensor:
    """Right singular vectors (n, min(m, n)), ascending."""
    X = W.double()
    m, n = X.shape
    if m >= n:
        return torch.linalg.eigh(X.T @ X)[1]
    values, left = torch.linalg.eigh(X @ X.T)
    return X.T @ left / values.sqrt()


def timed(work: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """The median of `runs`, and the last result."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


def cosine(found: Tensor | None, truth: Tensor | None) -> float | None:
    """Of the largest principal angle."""
    if found is None or truth is None:
        return None
    return float(torch.linalg.svdvals(found.T @ truth)[-1])


def table(results: dict[str, Any]) -> str:
    lines = ["| layer | algorithm | seconds | worst cosine, Q | worst cosine, V |", "| --- | --- | --: | --: | --: |"]
    for layer, rows in results.items():
        for name, row in rows.items():
            if name != "ratio":
                cosines = " | ".join(shown(row[key]) for key in ("cosine_q", "cosine_v"))
                lines.append(f"| {layer} | {name} | {row['seconds']:.2f} | {cosines} |")
        lines.append(f"| {layer} | **times faster than the full SVDs** | **{rows['ratio']:.1f}** | | |")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


if __name__ == "__main__":
    main()
