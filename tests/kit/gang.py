"""Real torchrun on the CPUs of this machine: a gang of processes that make several calls one after the other.

Each process loads torch, so that tests share a gang where they can.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ailora_tools
from kit.checkpoints import tree
from kit.waiting import SAFETY, until

MEMBER = Path(__file__).with_name("gang_member.py")
Calls = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Gang:
    """How a gang ended: torchrun's exit code, what all processes printed, and the exit codes of each call by rank,
    of the last attempt in which it made them all."""

    code: int
    out: str
    err: str
    codes: Mapping[int, Sequence[int]]


def start(folder: Path, ranks: int, calls: Calls, restarts: int = 0, **plan: Any) -> subprocess.Popen[str]:
    """torchrun with `ranks` processes that make `calls` of the command line; `plan` is for `gang_member`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({"calls": calls, **plan}))
    package = str(Path(ailora_tools.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
               f"--max-restarts={restarts}", str(MEMBER), str(folder)]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def end(folder: Path, process: subprocess.Popen[str]) -> Gang:
    """Wait for the agent and, should it have been killed, for the processes that it leaves."""
    out, err = process.communicate(timeout=SAFETY)
    until(lambda: not any(map(_runs, _pids(folder))))
    written = sorted(folder.glob("codes-*.json"), key=lambda path: int(path.stem.split("-")[1]))
    codes = {int(path.stem.split("-")[2]): json.loads(path.read_text()) for path in written}
    return Gang(process.returncode, out, err, codes)


def run(folder: Path, ranks: int, calls: Calls, restarts: int = 0, **plan: Any) -> Gang:
    """`start`, then `end`."""
    return end(folder, start(folder, ranks, calls, restarts, **plan))


def told(folder: Path) -> dict[str, bytes]:
    """A folder without the lines that tell the time and the processes, nor hashes of what holds those."""
    found = tree(folder)
    for name in {"ailora.json", "analysis.json"} & found.keys():
        document = json.loads(found[name])
        document["tool"].pop("processes", None)
        for key in ("sha256", "created", "seconds"):
            document.pop(key, None)
        found[name] = json.dumps(document).encode()
    found.pop("report.html", None)  # of analysis.json alone
    return found


def _pids(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in folder.glob("pid-*")]


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which nobody may be left to bury."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
