"""The folder that a run works in, beside its output: made, marked, found again, and removed by its owner alone.

`NAME.partial` or, where something of that name is there already, a name of its own. `owner.json` in it says which tool,
verb and job made it; `journal.jsonl` has a line for each finished step; `tree` becomes the final folder; a folder that
it replaces is set aside in `replaced` until it stands.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..errors import OutputError
from .claim import beside
from .platform import BINARY, rename_new, write_all
from .spans import sync_file, write_new

OWNER, JOURNAL, TREE, ASIDE = "owner.json", "journal.jsonl", "tree", "replaced"


_TOOL = "ailora-tools"


class WorkFolder:
    """The unfinished folder: `tree` becomes the final folder, `done` is what an earlier run finished."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree, self.aside = root, root / TREE, root / ASIDE
        self.owner = _read_owner(root)
        self._journal: int | None = None

    @cached_property
    def done(self) -> list[dict[str, Any]]:
        """The steps that an earlier run recorded."""
        return _read_journal(self.root / JOURNAL)

    def open(self) -> None:
        """Begin to write: the journal is written anew, because an interruption may have cut its last line."""
        self.tree.mkdir(exist_ok=True)
        journal = self.root / JOURNAL
        fresh = journal.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        write_new(fresh, "".join(_line(step) for step in self.done).encode())
        fresh.replace(journal)
        sync_file(self.root)
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | BINARY)

    def record(self, step: Mapping[str, Any]) -> None:
        """Keep what was just finished; call it when its bytes are written."""
        assert self._journal is not None
        write_all(self._journal, _line(step).encode())

    def agree(self, kind: str, value: Any) -> None:
        """Record what only the running work knows of its bytes; OutputError where an earlier run had another value."""
        before = self.finished(kind)
        if before and before[0] != plain(value):
            raise OutputError(
                f"{self.root}: the unfinished run had {kind} {before[0]}, this one has {plain(value)}.",
                "Go on where it ran (same kind of machine and versions), or give --overwrite to start again.",
            )
        if not before:
            self.record({kind: value})

    def finished(self, kind: str) -> list[Any]:
        """What an earlier run recorded under `kind`."""
        return [step[kind] for step in self.done if kind in step]

    def close(self) -> None:
        handle, self._journal = self._journal, None  # a handle whose closing failed is closed
        if handle is not None:
            os.close(handle)

    def put_back(self, final: Path) -> None:
        """What was to be replaced, if nothing took its place."""
        if self.aside.exists() and not os.path.lexists(final):
            self.aside.rename(final)

    def remove(self) -> None:
        """Under a hidden name and with the owner last: what an interruption leaves of it is known to the next run."""
        root = self.root
        with suppress(OSError):
            root = root.rename(_hidden(root.with_name(self.owner["final"])))
        for path in sorted(root.iterdir(), key=lambda path: path.name == OWNER):
            path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
        root.rmdir()


def recovered(final: Path) -> list[WorkFolder]:
    """Unfinished folders of earlier runs for this output, none of which is running any more: it would hold the lock.

    Where a run died after its last step the rest is done: a replaced folder goes back if nothing took its place, and
    what has been published needs no work folder.
    """
    _remove_unnamed(final)
    left = []
    for work in find(final):
        published = not work.tree.exists() and final.exists()
        work.put_back(final)
        if published:
            work.remove()
        else:
            left.append(work)
    return left


def find(final: Path) -> list[WorkFolder]:
    """Folders beside `final` that say they are the work of this tool on it."""
    found = []
    for entry in sorted(final.parent.glob("*.partial")):
        with suppress(OSError, ValueError, RecursionError):
            work = WorkFolder(entry)
            if (work.owner.get("tool"), work.owner.get("final")) == (_TOOL, final.name):
                found.append(work)
    return found


def _read_owner(root: Path) -> dict[str, Any]:
    """ValueError if this is no work folder."""
    path = root / OWNER
    if root.is_symlink() or not path.is_file():
        raise ValueError(f"no {OWNER}")
    owner = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(owner, dict):
        raise ValueError(f"{OWNER} is no object")
    return owner


def create(final: Path, verb: str, job: Mapping[str, Any] | None) -> WorkFolder:
    """A new folder that says whose it is from the moment it has a name that counts."""
    owner = {"tool": _TOOL, "verb": verb, "final": final.name, "job": job, "host": socket.gethostname(),
             "pid": os.getpid()}  # fmt: skip
    fresh = _hidden(final)
    fresh.mkdir()
    try:
        write_new(fresh / OWNER, _line(owner).encode())
        sync_file(fresh)
        plain = beside(final, ".partial")
        root = plain if rename_new(fresh, plain) else fresh
        sync_file(final.parent)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return WorkFolder(root)


def _hidden(final: Path) -> Path:
    return beside(final, f".{token_hex(4)}.partial", ".")


def _remove_unnamed(final: Path) -> None:
    """Folders that a killed run had not yet, or no longer, said to be its own: there is nothing else in them."""
    for entry in final.parent.glob(glob.escape(beside(final, ".", ".").name) + "????????.partial"):
        with suppress(OSError, ValueError):
            if {path.name for path in entry.iterdir()} <= {OWNER}:
                (entry / OWNER).unlink(missing_ok=True)
                entry.rmdir()


def _read_journal(path: Path) -> list[dict[str, Any]]:
    """The steps up to the first line that is none: an interruption may have cut it."""
    steps = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            step = json.loads(line)
        except ValueError:
            break
        if not isinstance(step, dict):
            break
        steps.append(step)
    return steps


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


def plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))
