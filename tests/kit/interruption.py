"""Ctrl-C in the middle of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence

from ailora_tools.progress import Silent
from kit.waiting import SAFETY

# The command line in a process that says "stored" after a module and goes on when a line comes in: between the two the
# process is surely in the middle of its run, with everything imported, whatever else the machine does.
PAUSING = """
import sys
from ailora_tools.cli import main
from ailora_tools.output.init_folder import InitFolder

store = InitFolder.store

def store_and_pause(self, *module):
    store(self, *module)
    print("stored", flush=True)
    sys.stdin.readline()

InitFolder.store = store_and_pause
main()
"""


def start(command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """A process that Ctrl-C reaches, even where the tests run in the background of a shell, which ignores it."""
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment}, preexec_fn=_heed_interrupts,
    )  # fmt: skip


def press_ctrl_c(process: subprocess.Popen[str]) -> str:
    """Interrupt it and wait for its end; what it wrote to stderr."""
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=SAFETY)[1]


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Interrupting(Silent):
    """Presses Ctrl-C after a number of modules."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, label: str, nbytes: int = 0) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def join_workers() -> None:
    """Wait for the threads of an interrupted run, which may still be at their last matrix or read."""
    for thread in threading.enumerate():
        if thread.name.startswith(("headers", "read", "work", "copy", "hash", "device", "shards")):
            thread.join()
