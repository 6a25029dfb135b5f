"""Ctrl-C in the middle of a run."""

from __future__ import annotations

import threading

from ailora_tools.progress import Silent

# The command line in a process that says "stored" after a module and goes on when a line comes in: between the two the
# process is surely in the middle of its run, with everything imported, whatever else the machine does.
PAUSING = """
import sys
from ailora_tools.cli import main
from ailora_tools.output.package import Package

store = Package.store

def store_and_pause(self, *module):
    store(self, *module)
    print("stored", flush=True)
    sys.stdin.readline()

Package.store = store_and_pause
main()
"""


class Interrupting(Silent):
    """Presses Ctrl-C after a number of modules."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, label: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def join_workers() -> None:
    """Wait for the threads of an interrupted run, which may still be at their last matrix or read."""
    for thread in threading.enumerate():
        if thread.name.startswith(("read", "stage", "work", "copy", "hash")):
            thread.join()
