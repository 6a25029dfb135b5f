"""`init`, `analyze` and `analyze --against` on one worker, on two, and on more workers than cores, in CPU seconds.

    python examples/benchmarks/workers.py [--layers 16] [--workers 1 2 4]

A checkpoint of Llama-3.2-1B's shape (as in init_vs_peft.py), and a full fine-tune of its W^Q and W^V: a small dense
change of each, rounded to bfloat16. Beside them what each is measured by: `cp -r` of the checkpoint, loading torch, and
a loop of `torch.linalg.svdvals`, by as many threads. CPU seconds of whole processes, user and system, the least of the
runs; `same` says that the adapter, or the analysis, has the bytes that one worker gave.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from analyze import LOOP
from init_vs_peft import build
from machine import describe, write_report
from safetensors import safe_open
from safetensors.torch import save_file

RUNS = 2
PEERS = ("cp -r", "import torch", "svdvals loop")
KEPT = ("ailora_init/adapter_model.safetensors", "analysis.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 2 * (os.cpu_count() or 1)])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = compared(Path(scratch), options.layers, options.workers)
    report = {"machine": describe(), "layers": options.layers, "workers": options.workers, "rows": rows}
    write_report("workers", report, table(rows, options.workers, options.layers))


def compared(scratch: Path, layers: int, workers: list[int]) -> dict[str, dict[str, Any]]:
    """name -> {"seconds": one for each number of workers, "same": whether all wrote the same}."""
    model = build(scratch / "model", layers)
    rows: dict[str, dict[str, Any]] = {}
    for name, command in commands(model, fine_tuned(model, scratch / "tuned"), scratch / "out").items():
        found = [measured(command, scratch / "out", count) for count in (workers if name not in PEERS else [1])]
        rows[name] = {"seconds": [seconds for seconds, _ in found], "same": len({digest for _, digest in found}) == 1}
        print(name, rows[name], file=sys.stderr, flush=True)
    return rows


def commands(model: Path, tuned: Path, out: Path) -> dict[str, list[str]]:
    python = sys.executable
    ours = [python, "-m", "ailora_tools"]
    analysed = [*ours, "analyze", str(model), "--quiet", "-o", str(out)]
    return {
        "cp -r": ["cp", "-r", str(model), str(out)],
        "import torch": [python, "-c", "import torch"],
        "init": [*ours, "init", str(model), "--rank", "16", "--quiet", "-o", str(out)],
        "svdvals loop": [python, "-c", LOOP, str(model)],
        "analyze": analysed,
        "analyze --against": [*analysed, "--against", str(tuned)],
    }


def fine_tuned(model: Path, folder: Path) -> Path:
    """W^Q and W^V of `model`, each changed by noise of 2 % of its size."""
    folder.mkdir()
    generator, changed = torch.Generator().manual_seed(1), {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if name.endswith(("q_proj.weight", "v_proj.weight")):
                    W = tensors.get_tensor(name).float()
                    draw = torch.randn(W.shape, generator=generator)
                    changed[name] = (W + 0.02 * float(W.std()) * draw).bfloat16()
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    shutil.copy(model / "config.json", folder)
    return folder


def measured(command: list[str], out: Path, workers: int) -> tuple[float, str]:
    """CPU seconds, and a hash of what was written."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(workers), "HF_HUB_OFFLINE": "1"}
    seconds, digest = [], ""
    for _ in range(RUNS):
        shutil.rmtree(out, ignore_errors=True)
        before = spent()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds.append(spent() - before)
        digest = fingerprint(out)
    shutil.rmtree(out, ignore_errors=True)
    return min(seconds), digest


def spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def fingerprint(out: Path) -> str:
    """Of the numbers alone: a document also has the time at which it was made."""
    found = hashlib.sha256()
    for path in (out / name for name in KEPT if (out / name).is_file()):
        numbers = json.loads(path.read_text())["matrices"] if path.suffix == ".json" else None
        found.update(path.read_bytes() if numbers is None else json.dumps(numbers).encode())
    return found.hexdigest()


def table(rows: dict[str, dict[str, Any]], workers: list[int], layers: int) -> str:
    heads = " | ".join(f"{count} at work" for count in workers)
    lines = [
        f"| {layers} layers, CPU seconds of a whole process | {heads} | same numbers |",
        f"| --- |{' ---: |' * len(workers)} --- |",
    ]
    for name, row in rows.items():
        cells = [f"{seconds:.1f}" for seconds in row["seconds"]]
        cells += [""] * (len(workers) - len(cells))
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if name in PEERS else 'yes' if row['same'] else 'no'} |")
    least = {name: min(row["seconds"]) for name, row in rows.items()}
    beyond = least["init"] - least["cp -r"] - least["import torch"]
    lines += [
        "",
        f"`init` takes {beyond:.1f} s beyond `cp -r` and loading torch; `analyze` is "
        f"{least['svdvals loop'] / least['analyze']:.1f} times as fast as the loop, and with `--against` takes "
        f"{least['analyze --against'] / least['analyze']:.1f} times as long as without.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
