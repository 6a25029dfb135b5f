"""Analysing a model on the Hub without downloading it, against downloading it first.

    python examples/benchmarks/hub.py [FOLDER]

A local server in a process of its own plays the Hub: every request takes LATENCY longer, and all connections together
get BANDWIDTH. The checkpoint has Llama-3.2-1B's shape (32 matrices, 2 GB bfloat16). "reading alone" fetches the
matrices and does nothing with them, "computing alone" analyses a local copy; the two overlap well if both together take
little longer than the slower one. Wall times of whole processes. Results under reports/benchmarks/.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from init_vs_peft import build
from machine import describe, write_report

LATENCY, BANDWIDTH = 0.05, 100e6
REPEATS, LAYERS, NAME = 3, 16, "org/model"
READ = f"""
import time
from ailora_tools import inspect_checkpoint
from ailora_tools.checkpoint.stream import find_device, stream
found = inspect_checkpoint("{NAME}")
for _ in stream(found.checkpoint.files, found.plan.targets, lambda target, W: None, find_device("cpu"), print):
    pass
"""
DOWNLOAD = f"""
import huggingface_hub, subprocess, sys
folder = huggingface_hub.snapshot_download("{NAME}")
subprocess.run([sys.executable, "-m", "ailora_tools", "analyze", folder, "-o", sys.argv[1], "--quiet"], check=True)
"""


def serve(folder: Path, pipe: Connection) -> None:
    """The server process: answers `count` with the bytes sent and requests seen since the last time."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from kit.hub_server import HubServer, Repo

    hub = HubServer()
    hub.repos[NAME] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
    for name in hub.repos[NAME].files:
        hub.repos[NAME].etag(name)  # hashed once, before anybody waits for it
    hub.latency, hub.bandwidth = LATENCY, BANDWIDTH
    pipe.send(hub.endpoint)
    while pipe.recv() == "count":
        pipe.send((hub.sent, len(hub.log)))
        hub.sent = 0
        hub.log.clear()


def compare(folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """Median seconds, bytes and requests of every way, in turn."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    server = context.Process(target=serve, args=(folder, theirs), daemon=True)
    server.start()
    endpoint = pipe.recv()
    python, out = sys.executable, str(scratch / "out")
    ours = [python, "-m", "ailora_tools", "analyze"]
    ways = {
        "reading alone": [python, "-c", READ],
        "computing alone": [*ours, str(folder), "-o", out, "--quiet", "--overwrite"],
        "analyze from the Hub": [*ours, NAME, "-o", out, "--quiet", "--overwrite"],
        "download, then analyze": [python, "-c", DOWNLOAD, str(scratch / "downloaded")],
    }
    figures: dict[str, list[tuple[float, int, int]]] = {name: [] for name in ways}
    for turn in range(REPEATS):
        for name, command in ways.items():
            home = {
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(scratch / f"home-{turn}"),
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_DISABLE_XET": "1",  # the server has no storage of that kind
            }
            start = time.perf_counter()
            subprocess.run(command, check=True, env={**os.environ, **home}, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            pipe.send("count")
            figures[name].append((seconds, *pipe.recv()))
            print(name, figures[name][-1], file=sys.stderr)
        subprocess.run(["rm", "-rf", *map(str, scratch.glob("*"))], check=True)
    pipe.send("stop")
    return [
        {
            "name": name,
            "seconds": statistics.median(row[0] for row in rows),
            "bytes": rows[0][1],
            "requests": rows[0][2],
        }
        for name, rows in figures.items()
    ]


def main() -> None:
    """Build the checkpoint unless a folder is given, compare, write."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else build(Path(scratch) / "source", LAYERS)
        work = Path(scratch) / "work"
        work.mkdir()
        rows = compare(folder, work)
        size = sum(path.stat().st_size for path in folder.iterdir())
    of = {row["name"]: row["seconds"] for row in rows}
    overlap = of["analyze from the Hub"] / max(of["reading alone"], of["computing alone"])
    report = {"machine": describe(), "bytes": size, "latency": LATENCY, "bandwidth": BANDWIDTH, "results": rows,
              "overlap": overlap}  # fmt: skip
    lines = ["| way | wall time | bytes over the network | requests |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row['name']} | {row['seconds']:.1f} s | {row['bytes'] / 1e6:.0f} MB | {row['requests']} |" for row in rows
    ]
    lines.append(f"\nAnalysing from the Hub takes {overlap:.2f} times the longer of reading and computing.")
    write_report("hub", json.loads(json.dumps(report)), "\n".join(lines))


if __name__ == "__main__":
    main()
