"""Inputs as they were when a run began: a file that is written anew meanwhile is an error, never a mixture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..checkpoint.files import Files
from ..errors import CheckpointError, listed

State = list[int]  # size, modification time in ns, inode


class Sources:
    """The state of files on this machine; what lies on the Hub is pinned to its commit and needs no watching."""

    def __init__(self, *inputs: tuple[Files, Iterable[str]]) -> None:
        paths = (files.local_path(name) for files, names in inputs for name in names)
        self._states = {path: _state(path) for path in paths if path is not None}

    def to_json(self) -> dict[str, State]:
        """For the job that a resumed run must agree on."""
        return {str(path): state for path, state in self._states.items()}

    def require_unchanged(self) -> None:
        """CheckpointError that names the files which are not what they were."""
        changed = [str(path) for path, state in self._states.items() if _state(path) != state]
        if changed:
            raise CheckpointError(
                f"{listed(changed)}: changed while the work went on.",
                "Run again when nothing writes there any more; nothing was kept of this run.",
            )


def _state(path: Path) -> State:
    try:
        status = path.stat()
    except OSError:
        return [-1, -1, -1]
    return [status.st_size, status.st_mtime_ns, status.st_ino]
