"""Accuracy against time for the top and the bottom of attention-shaped matrices, ours beside what else there is.

    python examples/benchmarks/decompose.py [--hidden 4096] [--rank 16] [--threads 1] [--beside FOLDER]

bfloat16 matrices: square ones, as W^Q and W^V of Llama-2-7B are with `--hidden 4096`, and a W^V of a quarter of the
rows, as in Llama-3-8B. `noisy` is Gaussian noise of unit variance / n plus a part of rank 256 with singular values
16 i^-0.4: slow decay over a bulk. `flat` has no bulk: its spectrum is i^-0.5 and its bottom is flat, the worst case
for `minor`. `svd_lowrank` with q = r is PEFT's `pissa_niter_4` and `_16`, with q = 2 r what it lacks; ARPACK and
PROPACK are those of scipy in float32; a full float32 `torch.linalg.svd` is PEFT's `pissa`. The truth: LAPACK's
eigenvectors by index of the float64 Gram matrix of the smaller side. Seconds are those of the CPU, the best of the
runs. `--beside` names a folder with another version of ailora_tools, whose `principal` and `minor` run on the same
matrices.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_report
from scipy.linalg import eigh
from scipy.sparse.linalg import svds
from torch import Tensor

from ailora_tools.linalg.minor import minor
from ailora_tools.linalg.principal import principal

RULES = {"principal": principal, "minor": minor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--ours", action="store_true", help="print our seconds as JSON and do nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: measured(*case, options.rank, options.ours) for name, case in cases(options.hidden).items()}
    if options.ours:
        print(json.dumps(found))
        return
    if options.beside:
        for name, rows in beside(options).items():
            found[name]["the version beside"] = rows["ours"]
    report = {"machine": describe(), "rank": options.rank, "threads": options.threads, "matrices": found}
    write_report("decompose", report, table(found) + "\n\n" + layers(found))


def cases(n: int) -> dict[str, tuple[str, Tensor]]:
    grouped = n // 4
    return {
        f"noisy Q, {n} x {n}, top": ("principal", noisy(n, n, 1)),
        f"flat Q, {n} x {n}, top": ("principal", decaying(n, 4)),
        f"noisy V, {grouped} x {n}, bottom": ("minor", noisy(grouped, n, 2)),
        f"noisy V, {n} x {n}, bottom": ("minor", noisy(n, n, 3)),
        f"flat V, {n} x {n}, bottom": ("minor", decaying(n, 5)),
    }


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


def measured(rule: str, W: Tensor, rank: int, only_ours: bool) -> dict[str, Any]:
    """CPU seconds and 1 - the worst cosine to the truth, by contender."""
    contenders: dict[str, tuple[int, Callable[[], Tensor]]] = {"ours": (2, lambda: ours(rule, W, rank))}
    if not only_ours:
        contenders |= {"full float32 SVD": (1, lambda: full(W, rule, rank))}
        contenders |= iterative(W, rank) if rule == "principal" else {}
    truth = None if only_ours else true_left(W, rule, rank)
    rows = {}
    for name, (runs, work) in contenders.items():
        seconds, U = timed(work, runs)
        rows[name] = {"cpu_seconds": seconds, "lost": None if truth is None else 1 - cosine(U, truth)}
        print(rule, tuple(W.shape), name, rows[name], file=sys.stderr, flush=True)
    return rows


def iterative(W: Tensor, rank: int) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    found: dict[str, tuple[int, Callable[[], Tensor]]] = {
        f"svd_lowrank, q = {name}, niter {niter}": (2, lambda q=q, niter=niter: lowrank(W, rank, q, niter))
        for niter, q, name in ((4, rank, "r"), (16, rank, "r"), (4, 2 * rank, "2 r"), (16, 2 * rank, "2 r"))
    }
    solvers = ("arpack", "propack")
    return found | {solver.upper(): (2, lambda solver=solver: sparse(W, rank, solver)) for solver in solvers}


def ours(rule: str, W: Tensor, rank: int) -> Tensor:
    return RULES[rule](W, rank, torch.Generator().manual_seed(0)).U


def lowrank(W: Tensor, rank: int, q: int, niter: int) -> Tensor:
    torch.manual_seed(0)
    return torch.svd_lowrank(W.float(), q=q, niter=niter)[0][:, :rank].double()


def sparse(W: Tensor, rank: int, solver: str) -> Tensor:
    U = svds(W.float().numpy(), k=rank, solver=solver, rng=np.random.default_rng(0))[0]
    return torch.from_numpy(U.astype(np.float64))


def full(W: Tensor, rule: str, rank: int) -> Tensor:
    U = torch.linalg.svd(W.float(), full_matrices=False)[0]
    return ends(U, rule, rank).double()


def ends(U: Tensor, rule: str, rank: int) -> Tensor:
    return U[:, :rank] if rule == "principal" else U[:, -rank:]


def true_left(W: Tensor, rule: str, rank: int) -> Tensor:
    """Left singular vectors (m, rank), m <= n."""
    X, m = W.double(), W.shape[0]
    index = (m - rank, m - 1) if rule == "principal" else (0, rank - 1)
    return torch.from_numpy(eigh((X @ X.T).numpy(), subset_by_index=index, driver="evr")[1])


def timed(work: Callable[[], Tensor], runs: int) -> tuple[float, Tensor]:
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        found = work()
        seconds.append(time.process_time() - start)
    return min(seconds), found


def cosine(found: Tensor, truth: Tensor) -> float:
    """Of the largest principal angle."""
    return float(torch.linalg.svdvals(torch.linalg.qr(found)[0].T @ truth)[-1])


def beside(options: argparse.Namespace) -> dict[str, Any]:
    """Our seconds with the package in another folder."""
    sizes = {name: str(vars(options)[name]) for name in ("hidden", "rank", "threads")}
    command = [
        sys.executable,
        __file__,
        "--ours",
        *(word for name, size in sizes.items() for word in (f"--{name}", size)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(options.beside)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def table(found: dict[str, Any]) -> str:
    lines = ["| matrix | algorithm | CPU seconds | 1 - worst cosine |", "| --- | --- | --: | --: |"]
    for matrix, rows in found.items():
        for name, row in rows.items():
            lost = "" if row["lost"] is None else f"{max(row['lost'], 0.0):.0e}"
            lines.append(f"| {matrix} | {name} | {row['cpu_seconds']:.2f} | {lost} |")
    return "\n".join(lines)


def layers(found: dict[str, Any]) -> str:
    """Both matrices of a layer, against two full SVDs and the version beside."""
    q, flat_q, v, square_v, flat_v = found
    pairs = {"grouped queries": (q, v), "square": (q, square_v), "square, flat": (flat_q, flat_v)}
    lines = ["| layer | CPU seconds | full SVDs | times | the version beside |", "| --- | --: | --: | --: | --: |"]
    for layer, pair in pairs.items():
        ours, svd = (total(found, pair, name) for name in ("ours", "full float32 SVD"))
        other = total(found, pair, "the version beside") if "the version beside" in found[q] else None
        lines.append(
            f"| {layer} | {ours:.2f} | {svd:.1f} | {svd / ours:.1f} | {'' if other is None else f'{other:.2f}'} |"
        )
    return "\n".join(lines)


def total(found: dict[str, Any], pair: tuple[str, str], name: str) -> float:
    return sum(found[matrix][name]["cpu_seconds"] for matrix in pair)


if __name__ == "__main__":
    main()
