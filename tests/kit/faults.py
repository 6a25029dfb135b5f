"""Runs of the command line that are stopped before, or fail at, one of their file-system calls.

`faults.c` stands between the program and the C library; `fault_server.py` imports the tool once and forks a child for
every run. Linux with a C compiler only.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ailora_tools

HERE = Path(__file__).parent
ROOM, CHANGE, READ = 1, 2, 4  # kinds of calls, as in faults.c: they take room, change something without that, or read
TEAR = -1
WRITES = ("write", "writev", "pwrite", "pwrite64", "copy_file_range", "sendfile", "sendfile64")
FOREVER = (1 << 63) - 1
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
UNABLE = "needs Linux" if sys.platform != "linux" else "needs a C compiler" if COMPILER is None else ""


@dataclass(frozen=True)
class Call:
    """One file-system call: its kind, its name, and its file relative to the folder that is watched."""

    kind: int
    name: str
    path: str


@dataclass(frozen=True)
class Fault:
    """What happens at a call, which concerns only calls of some kinds.

    action: a signal, TEAR for a kill in the middle of a write, or 0 for the error `error`, once or from then on.
    inputs: the calls are those that concern the inputs, not those beside the output.
    """

    name: str
    action: int = 0
    error: int = 0
    stays: bool = False
    kinds: int = ROOM | CHANGE
    inputs: bool = False

    def points(self, calls: Sequence[Call]) -> list[tuple[int, Call]]:
        """Of the counted calls those at which it can happen, with their numbers."""
        torn = self.action == TEAR
        return [(number, call) for number, call in enumerate(calls, 1) if not torn or call.name in WRITES]


NOTHING = Fault("nothing")
KILL = Fault("killed before every call", signal.SIGKILL)
TORN = Fault("killed in the middle of every write", TEAR)
FULL_ONCE = Fault("ENOSPC once, at every call", error=errno.ENOSPC, kinds=ROOM)
FULL = Fault("ENOSPC from then on, at every call", error=errno.ENOSPC, stays=True, kinds=ROOM)
BROKEN = Fault("EIO once, at every call", error=errno.EIO)
UNREADABLE = Fault("EIO once, at every read of an input", error=errno.EIO, kinds=READ, inputs=True)
KILLED_READING = Fault("killed before every read of an input", signal.SIGKILL, kinds=READ, inputs=True)
HELD = Fault("held at a call", signal.SIGSTOP)


@dataclass(frozen=True)
class Done:
    """How a run ended: its exit code (negative: the signal), what it printed, and its calls in their order."""

    code: int
    printed: str
    calls: tuple[Call, ...]


@dataclass
class Run:
    """A run that goes on, or is stopped."""

    server: FaultServer
    pid: int
    printed: Path
    log: Path

    def wait(self) -> Done | None:
        """Until it ends; None if it stopped instead."""
        code = self.server.ask({"wait": self.pid})
        return None if code == "stopped" else Done(code, self.printed.read_text(errors="replace"), self.calls())

    def calls(self) -> tuple[Call, ...]:
        """Those so far; a limit for the size of files may have cut the last line."""
        words = (line.split(" ", 2) for line in self.log.read_text(errors="surrogateescape").splitlines())
        return tuple(Call(int(line[0]), line[1], line[2]) for line in words if len(line) == 3)

    def go_on(self) -> Done:
        """After it stopped."""
        os.kill(self.pid, signal.SIGCONT)
        done = self.wait()
        assert done is not None
        return done


@dataclass
class FaultServer:
    """Starts runs; what they print and their calls are kept in `folder`."""

    process: subprocess.Popen[str]
    folder: Path
    started: int = field(default=0)

    def ask(self, request: Mapping[str, Any]) -> Any:
        """One request, one answer."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(
        self, command: Sequence[str | Path], root: Path, fault: Fault = NOTHING, at: int = 0, **limits: int
    ) -> Run:
        """Start a command line; `fault` happens at its call number `at` (from 1; 0: never) below `root`."""
        self.started += 1
        printed, log = (self.folder / f"{self.started % 8}.{kind}" for kind in ("printed", "log"))
        calls = (at, FOREVER if fault.stays else at) if at else (0, 0)
        request = {
            "command": [str(word) for word in command], "root": str(root), "kinds": fault.kinds, "calls": calls,
            "action": int(fault.action), "error": fault.error, "limits": limits, "printed": str(printed),
            "log": str(log),
        }  # fmt: skip
        return Run(self, self.ask(request), printed, log)

    def run(
        self, command: Sequence[str | Path], root: Path, fault: Fault = NOTHING, at: int = 0, **limits: int
    ) -> Done:
        """Start it and wait for its end."""
        done = self.start(command, root, fault, at, **limits).wait()
        assert done is not None
        return done


@contextmanager
def fault_server(folder: Path) -> Iterator[FaultServer]:
    """A server that keeps its files in `folder`."""
    assert COMPILER is not None
    library = folder / "faults.so"
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    path = os.pathsep.join([str(Path(ailora_tools.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, HERE / "fault_server.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield FaultServer(process, folder)
        assert process.stdin
        process.stdin.close()
