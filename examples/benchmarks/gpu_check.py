"""One short session on a CUDA device: is the surgery right there, how fast, how busy is the device, how much memory?

    python examples/benchmarks/gpu_check.py [--device cuda:0] [--seconds 420] [--out FOLDER] [--scratch FOLDER]

Sections run in the order of what they are worth and stop when the seconds are used up; each is guarded, so that one
that fails costs no other. One JSON line a result goes to the screen and to FOLDER/gpu_check.jsonl; at the end there is
a table, also at reports/benchmarks/gpu.md with the card's name. `--small --device cpu` tries the script itself, in a
minute, and writes no report. Exits with 1 if device and CPU disagree or a section failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from look_alikes import decaying, noise, small_llama
from machine import describe, write_report
from torch import Tensor

import ailora_tools
from ailora_tools.checkpoint.arithmetic import ieee
from ailora_tools.checkpoint.files import LocalFiles
from ailora_tools.checkpoint.header import StoredTensor
from ailora_tools.checkpoint.stream import matrix_bytes, stream
from ailora_tools.linalg.components import gram
from ailora_tools.linalg.spectrum import spectrum
from ailora_tools.surgery.decompose import Recipe, decompose, subtract

SHAPES = {
    "Llama-3-8B Q": (4096, 4096, "principal"), "Llama-3-8B V": (1024, 4096, "minor"),
    "Llama-2-7B V": (4096, 4096, "minor"), "70B Q": (8192, 8192, "principal"), "70B V": (1024, 8192, "minor"),
}  # fmt: skip
RANK = 16
WANTED_COSINE, WANTED_BUSY, MOST_MATRICES = 0.99999, 0.6, 6
Row = dict[str, Any]


class Session:
    """The options, the rows so far, and how much time is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.small = torch.device(options.device), options.small
        self.out, self.scratch = Path(options.out), options.scratch
        self.rows: list[Row] = []
        self._start, self._seconds = time.perf_counter(), options.seconds
        self.out.mkdir(parents=True, exist_ok=True)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        return self._seconds - (time.perf_counter() - self._start)

    def shape(self, m: int, n: int) -> tuple[int, int]:
        return (m // 16, n // 16) if self.small else (m, n)

    def tell(self, section: str, **values: Any) -> None:
        row = {"section": section, **values, "at": round(self._seconds - self.left(), 1)}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        with open(self.out / "gpu_check.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def matrix(self, kind: str, m: int, n: int, seed: int) -> Tensor:
        """(m, n) bfloat16 on the device."""
        return {"decaying": decaying, "noise": noise}[kind](*self.shape(m, n), seed).to(torch.bfloat16).to(self.device)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], runs: int = 5, budget: float = 10.0) -> tuple[float, Any]:
        """Median after one run that is not counted, or that one run where it took more than half of the budget."""
        times = []
        for _ in range(runs + 1):
            self.sync()
            start = time.perf_counter()
            result = work()
            self.sync()
            times.append(time.perf_counter() - start)
            if sum(times) > budget / 2:
                break
        return statistics.median(times[1:] or times), result

    def forget(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, float] | None:
        """GB of device memory."""
        if not self.cuda:
            return None
        return {
            "allocated": torch.cuda.max_memory_allocated() / 1e9, "reserved": torch.cuda.max_memory_reserved() / 1e9
        }  # fmt: skip


def recipe(name: str, rule: str) -> Recipe:
    return Recipe(rule, RANK, 1.0, torch.float32, torch.bfloat16, "auto", 0, name)


def worst_cosine(X: Tensor, Y: Tensor) -> float:
    """Of the principal angles between the spans of the columns."""
    X, Y = (torch.linalg.qr(M.double().cpu())[0] for M in (X, Y))
    return float(torch.linalg.svdvals(X.T @ Y).min())


def bits_differ(X: Tensor, Y: Tensor) -> int:
    return int((X.view(torch.int16) != Y.view(torch.int16)).sum())


def staging(session: Session) -> Iterator[Row]:
    """Bytes a second of `stream` with next to no work, and what the allocator holds after many matrices."""
    side, count = (256, 12) if session.small else (4096, 40)
    data = bytes(matrix_bytes(noise(side, side, 9).to(torch.bfloat16)))
    with tempfile.TemporaryDirectory(dir=session.scratch) as folder:
        Path(folder, "raw.bin").write_bytes(data)
        place = SimpleNamespace(stored=StoredTensor("raw.bin", "W", "BF16", (side, side), 0, len(data)))
        session.forget()
        start = time.perf_counter()
        for _ in stream(LocalFiles(Path(folder)), [place] * count, lambda _, W: float(W[0, 0]), session.device, print):
            pass
        session.sync()
        seconds = time.perf_counter() - start
    peak = session.peak()
    few = peak is None or peak["reserved"] * 1e9 <= MOST_MATRICES * len(data) + (64 << 20)
    yield {"gb_per_second": count * len(data) / 1e9 / seconds, "matrix_gb": len(data) / 1e9, "gpu_gb": peak, "ok": few}


def correctness(session: Session) -> Iterator[Row]:
    """Device against CPU: subspaces, errors, bits of the residual; twice the same bytes; whatever TF32 is set to."""
    for at, (name, (m, n, rule)) in enumerate(SHAPES.items()):
        if session.left() < 60:
            return
        W, plan = session.matrix("decaying", m, n, 10 + at), recipe(name, rule)
        torch.set_float32_matmul_precision("high")  # as trainers do: nothing may hang on it
        with ieee():
            here = decompose(W.cpu(), plan)
            there, again = decompose(W, plan).cpu(), decompose(W, plan).cpu()
            redone = subtract(W, here.A.to(W.device), here.B.to(W.device), plan, here.numbers.rounding).cpu()
        torch.set_float32_matmul_precision("highest")
        assert there.residual is not None and here.residual is not None and again.residual is not None
        exact = W.cpu().double()
        error = float((exact - there.residual.double() - there.B.double() @ there.A.double()).norm() / exact.norm())
        cosine = min(worst_cosine(here.B, there.B), worst_cosine(here.A.T, there.A.T))
        twice = torch.equal(there.A, again.A) and torch.equal(there.B, again.B)
        twice = twice and not bits_differ(there.residual, again.residual)
        recorded = there.numbers.reconstruction_error
        yield {
            "name": name, "route": there.numbers.route, "cpu_route": here.numbers.route, "cosine": cosine,
            "gap": here.numbers.gap, "error": error, "recorded": recorded, "same_bytes_twice": twice,
            "residual_bits_differ": bits_differ(there.residual, here.residual),
            "residualize_bits_differ": bits_differ(redone, here.residual),
            "ok": twice and abs(error - recorded) <= 1e-3 * recorded and cosine >= WANTED_COSINE,
        }  # fmt: skip


def verbs(session: Session) -> Iterator[Row]:
    """A folder of 70B-shaped layers: seconds, those from the first kernel to the last, share of these in which the
    device worked, memory; then the proof. Before the first and beside them transformers is asked what the class builds,
    which takes as long for 6 layers as for 80."""
    layers, q, v, hidden = (2, 512, 128, 512) if session.small else (6, 8192, 1024, 8192)
    with tempfile.TemporaryDirectory(dir=session.scratch) as scratch:
        folder = small_llama(Path(scratch) / "model", layers, q, v, hidden)
        calls: dict[str, Callable[[], Any]] = {
            "init --no-base": lambda: ailora_tools.initialize(
                folder, RANK, no_base=True, output=f"{scratch}/offset", device=str(session.device)
            ),
            "analyze": lambda: ailora_tools.analyze(folder, output=f"{scratch}/report", device=str(session.device)),
            "init": lambda: ailora_tools.initialize(folder, RANK, output=f"{scratch}/init", device=str(session.device)),
        }
        for verb, call in calls.items():
            if session.left() < 45:
                return
            session.forget()
            start = time.perf_counter()
            busy, span, launches, copies = device_time(session, call)
            seconds, peak = time.perf_counter() - start, session.peak()
            few = peak is None or peak["allocated"] * 1e9 <= MOST_MATRICES * 8 * q * hidden
            enough = not session.cuda or verb != "analyze" or busy / span >= WANTED_BUSY
            yield {
                "name": verb, "matrices": 2 * layers, "seconds": seconds, "device_seconds": span,
                "busy_share": busy / span, "launches": launches, "copy_seconds": copies, "gpu_gb": peak,
                "ok": few and enough,
            }  # fmt: skip
        report = ailora_tools.verify(f"{scratch}/init")
        faults = [check.detail for check in report.checks if not check.holds]
        yield {"name": "verify", "faults": faults, "ok": report.holds}


def device_time(session: Session, work: Callable[[], Any]) -> tuple[float, float, int, float]:
    """Seconds in which any kernel ran (overlaps counted once), from the first to the last, launches, and of copies."""
    if not session.cuda:
        work()
        return 0.0, 1.0, 0, 0.0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as watch:
        work()
        session.sync()
    spans, copies = [], 0.0
    for event in watch.profiler.kineto_results.events():  # type: ignore[union-attr]
        if "CUDA" not in str(event.device_type()):
            continue
        begin, length = event.start_ns(), event.duration_ns()
        if "memcpy" in event.name().lower():
            copies += length / 1e9
        else:
            spans.append((begin, begin + length))
    busy = last = 0
    for begin, end in sorted(spans):
        busy += max(0, end - max(begin, last))
        last = max(last, end)
    return busy / 1e9, (last - min(spans)[0]) / 1e9, len(spans), copies


def speed(session: Session) -> Iterator[Row]:
    """The surgery on the device, on two kinds of spectra, beside PEFT's own initialisation."""
    torch.set_num_threads(1)  # as in a worker of the pipeline: small projected SVDs get slower with every thread
    for at, (name, (m, n, rule)) in enumerate(SHAPES.items()):
        for kind in ("decaying", "noise"):
            if session.left() < 45:
                return
            W = session.matrix(kind, m, n, 20 + at)
            with ieee():
                seconds, found = session.seconds(lambda: decompose(W, recipe(name, rule)), 5, 8)  # noqa: B023
            peft = {}
            if kind == "decaying" and rule == "principal":
                peft = {init: peft_seconds(session, W, init) for init in ("pissa_niter_4", "pissa_niter_16")}
            yield {"name": f"{name}, {kind}", "seconds": seconds, "route": found.numbers.route, **peft}


def peft_seconds(session: Session, W: Tensor, init: str) -> float:
    from peft import LoraConfig, get_peft_model

    def once() -> None:
        layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, device=W.device, dtype=W.dtype)
        layer.weight.data.copy_(W)
        config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights=init, target_modules=["0"])  # type: ignore[arg-type]
        get_peft_model(torch.nn.Sequential(layer), config)  # type: ignore[arg-type]

    return session.seconds(once, 3, 6)[0]


def spectra(session: Session) -> Iterator[Row]:
    """All singular values: beside torch's own on the device, and the eigenproblem alone in both widths."""
    for m, n in ((1024, 4096), (4096, 4096), (1024, 8192), (8192, 8192)):
        if session.left() < 40:
            return
        W = session.matrix("decaying", m, n, m + n)
        with ieee():
            seconds, found = session.seconds(lambda: spectrum(W), 3, 12)  # noqa: B023
            G = gram(W)
            wide = session.seconds(lambda: torch.linalg.eigvalsh(G), 3, 12)[0]  # noqa: B023
            narrow = session.seconds(lambda: torch.linalg.eigvalsh(G.float()), 3, 8)[0]  # noqa: B023
        row = {"name": f"{m} x {n}", "seconds": seconds, "eigvalsh64": wide, "eigvalsh32": narrow, "route": found.route}
        if n <= 4096:
            row["svdvals32"] = session.seconds(lambda: torch.linalg.svdvals(W.float()), 2, 12)[0]  # noqa: B023
        yield row


def full_svds(session: Session) -> Iterator[Row]:
    """What PEFT's `pissa` does: a whole SVD in float32. Sizes grow until the next would outlast what is left."""
    drivers = ("gesvdj", "gesvd") if session.cuda else (None,)
    for driver in drivers:
        last = 0.0
        for side in (512, 1024, 2048, 4096):
            if session.left() < 20 + 10 * last:
                break
            W = session.matrix("decaying", side, side, side).float()
            last = session.seconds(lambda: torch.linalg.svd(W, full_matrices=False, driver=driver), 1, 1)[0]  # noqa: B023
            yield {"name": f"{side} x {side}, {driver or 'LAPACK'}", "seconds": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--out", default=".")
    parser.add_argument("--scratch", help="fast disk or memory, such as /dev/shm")
    parser.add_argument("--small", action="store_true")
    session = Session(parser.parse_args())
    if session.cuda and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here: nothing was checked.")
    for section in (staging, correctness, verbs, speed, spectra, full_svds):
        try:
            for row in section(session):
                session.tell(section.__name__, **row)
        except Exception as error:
            traceback.print_exc()
            session.tell(section.__name__, failed=f"{type(error).__name__}: {error}", ok=False)
    report(session)
    if not all(row.get("ok", True) for row in session.rows):
        sys.exit('Something does not hold: see the rows with "ok": false.')


def report(session: Session) -> None:
    heads = ("", "", "seconds", "first to last kernel", "device busy of these", "device memory", "holds")
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for row in session.rows:
        memory = row["gpu_gb"]["allocated"] if row.get("gpu_gb") else None
        cells = [
            (row.get("seconds"), "{:.3f}"), (row.get("device_seconds"), "{:.3f}"), (row.get("busy_share"), "{:.0%}"),
            (memory, "{:.2f} GB"),
        ]  # fmt: skip
        shown = " | ".join("" if value is None else form.format(value) for value, form in cells)
        holds = "" if "ok" not in row else "yes" if row["ok"] else "no"
        lines.append(f"| {row['section']} | {row.get('name', '')} | {shown} | {holds} |")
    table = "\n".join(lines)
    if session.cuda and not session.small:
        machine = describe() | {"device": torch.cuda.get_device_name(session.device)}
        write_report("gpu", {"machine": machine, "results": session.rows}, f"{machine['device']}\n\n{table}")
    else:
        print(table)


if __name__ == "__main__":
    main()
