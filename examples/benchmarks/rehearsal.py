"""Verbs on look-alikes of 70B, 405B, DeepSeek-V3 and Qwen3-235B: seconds, peak memory, open files, stated memory.

    python examples/benchmarks/rehearsal.py [--shapes llama-70b,...] [--scratch FOLDER]

Each is a sparse checkpoint with real numbers in layer 0 (see look_alikes.py): `inspect` of all of it, `init --no-base`
and `analyze` of that layer, as whole processes with one matrix at a time, alone and as two ranks of torchrun. Seconds
are CPU seconds, of two ranks those of the busier. Peak memory, of two ranks that of the larger, is beside that of
Python and torch, as `inspect` states it; a sample of /proc every 20 ms counts open files. Of Llama-3.1-405B `analyze`
looks at W^V only: W^Q takes several minutes. Results of earlier runs with other shapes are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from look_alikes import SHAPES, build
from machine import REPORTS, describe, write_report

LAYER = "0"
SAMPLE = 0.02
IMPORT = "import torch, numpy, ailora_tools.surgery.tensor, ailora_tools.analysis.measuring"
RANKS = ", 2 ranks"
GANG = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
HEADINGS = ("model", "command", "CPU s", "peak", "stated", "open files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--scratch")
    options = parser.parse_args()
    held = REPORTS / "rehearsal.json"
    rows = {row["model"]: row for row in json.loads(held.read_text())["results"]} if held.exists() else {}
    runtime = run("-c", IMPORT)["peak"]
    for name in options.shapes.split(","):
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            rows[name] = rehearse(name, Path(scratch), runtime)
    results = [rows[name] for name in SHAPES if name in rows]
    write_report("rehearsal", {"machine": describe(), "results": results}, table(results))


def rehearse(name: str, scratch: Path, runtime: int) -> dict[str, Any]:
    """One look-alike, which is gone afterwards."""
    model = build(name, scratch / "model", {int(LAYER)}, set())
    tool = ("-m", "ailora_tools")
    inspected = run(*tool, "inspect", str(model), "--layers", LAYER, "--json")
    whole = run(*tool, "inspect", str(model), "--json")
    stated = json.loads(inspected.pop("printed"))["working_memory"]
    sizes = json.loads(whole.pop("printed"))
    roles = ("--roles", "v") if name == "llama-405b" else ()
    if roles:
        of_v = run(*tool, "inspect", str(model), "--layers", LAYER, *roles, "--json")
        stated["analyze"] = json.loads(of_v["printed"])["working_memory"]["analyze"]
    commands = {
        "init --no-base": ("init", str(model), "--rank", "16", "--no-base", "--layers", LAYER),
        "analyze": ("analyze", str(model), "--layers", LAYER, *roles),
    }
    found = {"inspect": whole}
    for verb, command in commands.items():
        for ranks, launcher in (("", ()), (RANKS, GANG)):
            out = scratch / "out"
            figures = run(*launcher, *tool, *command, "-o", str(out), "--quiet", "--json")
            del figures["printed"]
            figures["stated"] = stated[verb]["fixed"] + stated[verb]["each"]
            figures["peak"] -= runtime
            found[verb + ranks] = figures
            shutil.rmtree(out)
    return {
        "model": name, "bytes": sizes["bytes_total"], "shards": len(sizes["shards"]), "runtime": runtime,
        "roles": "v" if roles else "q,v", "runs": found,
    }  # fmt: skip


def run(*command: str) -> dict[str, Any]:
    """CPU seconds, peak bytes and most open files of the busiest of a process and its children; what was printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen([sys.executable, *command], stdout=printed, env=environment)
        peak, files, seconds = 0, 0, 0.0
        while child.poll() is None:
            for pid in _family(child.pid):
                peak, files = max(peak, _peak(pid)), max(files, _files(pid))
                seconds = max(seconds, _seconds(pid))
            time.sleep(SAMPLE)
        printed.seek(0)
        text = printed.read().decode()
    if child.returncode:
        raise SystemExit(f"{command} ended with {child.returncode}")
    return {"seconds": seconds, "peak": peak, "files": files, "printed": text}


def _family(pid: int) -> list[int]:
    below = _read(f"/proc/{pid}/task/{pid}/children").split()
    return [pid, *(member for child in below for member in _family(int(child)))]


def _peak(pid: int) -> int:
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def _files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def _seconds(pid: int) -> float:
    fields = _read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def table(results: list[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(HEADINGS)} |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for result in results:
        name = f"{result['model']}: {result['bytes'] / 1e9:,.0f} GB, {result['shards']} shards"
        for run_of, found in result["runs"].items():
            verb, ranks, _ = run_of.partition(RANKS)
            of = ", W^V" if verb == "analyze" and result["roles"] == "v" else ""
            command = verb if verb == "inspect" else f"{verb}, layer {LAYER}{of}{ranks}"
            stated = f"{found['stated'] / 1e9:.2f} GB" if "stated" in found else ""
            cells = (f"{found['seconds']:.1f}", f"{found['peak'] / 1e9:.2f} GB", stated, found["files"])
            lines.append(f"| {name} | {command} | {' | '.join(map(str, cells))} |")
            name = ""
    return "\n".join(lines)


if __name__ == "__main__":
    main()
