"""The one seam for input: list the files of a checkpoint, ask a size, read a byte span.

Disk, Hub and the in-memory double of the tests all speak this protocol and share one contract test
(`tests/checkpoint/test_files.py`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

from ..errors import CheckpointError, UnreadableError
from .transfer import Traffic

_CUT = "The file is shorter than its header says, or it was cut while being read: download or copy it again."


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from: a path, or the name of a repository on the Hub and the commit that is read."""

    location: str
    revision: str | None = None
    subfolder: str = ""

    @property
    def on_hub(self) -> bool:
        return self.revision is not None

    @property
    def text(self) -> str:
        """The location as the user knows it."""
        return "/".join(part for part in (self.location, self.subfolder) if part)

    @property
    def name(self) -> str:
        """A short name for titles and default folders."""
        path = Path(self.location) if self.on_hub else Path(self.location).expanduser().resolve()
        if path.suffix == ".json":  # an index, which stands for its folder
            path = path.parent
        stem = path.stem if path.suffix == ".safetensors" else path.name
        return "-".join([stem, *Path(self.subfolder).parts])

    @property
    def path(self) -> Path | None:
        """The path on this machine, None for a repository."""
        return None if self.on_hub else Path(self.location)

    def to_json(self) -> dict[str, str | None]:
        """What finds the same bytes again: an absolute path, or hf://org/name with its commit and subfolder."""
        if self.path is not None:
            return {"location": str(self.path.resolve()), "revision": None, "subfolder": ""}
        return {"location": f"hf://{self.location}", "revision": self.revision, "subfolder": self.subfolder}


class Files(Protocol):
    """Read-only files under one root; names are relative and use '/'."""

    @property
    def origin(self) -> Origin:
        """Where the root is, for messages and the manifest."""
        ...

    @property
    def connections(self) -> int:
        """How many reads at a time are faster than one; 1 for a disk."""
        ...

    @property
    def traffic(self) -> Traffic | None:
        """What went over the network; None where nothing does."""
        ...

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about where the bytes come from."""
        ...

    def names(self) -> list[str]:
        """All file names, sorted; hidden folders are left out."""
        ...

    def strays(self) -> list[str]:
        """Those of `names` that are links to elsewhere: they may be read as weights, but are not copied as files."""
        ...

    def oddities(self) -> dict[str, str]:
        """What has the place of a file and is none -> what it is: a link to nothing, a pipe, a folder with its name."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file; raises CheckpointError if it is not there."""
        ...

    def read(self, name: str, start: int, stop: int) -> bytearray:
        """Exactly bytes [start, stop); raises CheckpointError rather than return fewer."""
        ...

    def where(self, name: str) -> str:
        """A file as messages name it."""
        ...

    def local_path(self, name: str) -> Path | None:
        """The file on a disk of this machine, None if it is not on one."""
        ...


class LocalFiles:
    """A folder, or one .safetensors file with the config.json beside it; `origin` if it goes by another name."""

    connections = 1
    traffic: Traffic | None = None

    def __init__(self, path: Path, origin: Origin | None = None, notices: tuple[str, ...] = ()) -> None:
        self.root = path if path.is_dir() else path.parent
        self._only = None if path.is_dir() else path.name
        self.origin = origin or Origin(str(path))
        self.notices = notices

    def names(self) -> list[str]:
        if self._only is not None:
            return sorted(name for name in {self._only, "config.json"} if _is_file(self.root / name))
        try:
            return sorted(_walk(self.root))
        except OSError as error:
            raise _refused(self.root, error) from None

    def strays(self) -> list[str]:
        homes = _homes(self.root.resolve())
        return [name for name in self.names() if not _lies_in(self.root / name, homes)]

    def oddities(self) -> dict[str, str]:
        places = [self.root / self._only] if self._only is not None else sorted(self.root.iterdir())
        return {path.name: what for path in places if (what := _oddity(path))}

    def where(self, name: str) -> str:
        return str(self.root / name)

    def local_path(self, name: str) -> Path:
        return self.root / name

    def size(self, name: str) -> int:
        path = self.root / name
        try:
            status = path.stat()
        except OSError as error:
            raise _refused(path, error) from None
        if not S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: expected a file, found a folder or a device.", "Give the path of a file.")
        return status.st_size

    def read(self, name: str, start: int, stop: int) -> bytearray:
        buffer = bytearray(stop - start)
        _fill(self.root / name, start, memoryview(buffer))
        return buffer


class Below:
    """One folder of other files, as files of its own: of a repository, the adapter beside a base."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files, self._folder = files, f"{folder}/"
        there = files.origin
        inside = "/".join(part for part in (there.subfolder, folder) if part)
        self.origin = Origin(there.location, there.revision, inside)

    @property
    def connections(self) -> int:
        return self._files.connections

    @property
    def traffic(self) -> Traffic | None:
        return self._files.traffic

    @property
    def notices(self) -> tuple[str, ...]:
        return self._files.notices

    def names(self) -> list[str]:
        return self._inside(self._files.names())

    def strays(self) -> list[str]:
        return self._inside(self._files.strays())

    def oddities(self) -> dict[str, str]:
        return {}

    def where(self, name: str) -> str:
        return self._files.where(self._folder + name)

    def local_path(self, name: str) -> Path | None:
        return self._files.local_path(self._folder + name)

    def size(self, name: str) -> int:
        return self._files.size(self._folder + name)

    def read(self, name: str, start: int, stop: int) -> bytearray:
        return self._files.read(self._folder + name, start, stop)

    def _inside(self, names: list[str]) -> list[str]:
        return [name.removeprefix(self._folder) for name in names if name.startswith(self._folder)]


def below(files: Files, folder: str) -> Files:
    """The folder `folder` of `files`; whether it is there is found by who reads it."""
    return LocalFiles(files.root / folder) if isinstance(files, LocalFiles) else Below(files, folder)


def read_into(files: Files, name: str, start: int, buffer: memoryview) -> None:
    """As many bytes from `start` as `buffer` is long, from a folder without a copy in between; errors as of `read`."""
    if isinstance(files, LocalFiles):
        _fill(files.root / name, start, buffer)
    else:
        buffer[:] = files.read(name, start, start + len(buffer))


def _fill(path: Path, start: int, buffer: memoryview) -> None:
    done = 0
    try:
        with open(path, "rb", buffering=0) as handle:
            handle.seek(start)
            # One call returns at most about 2 GB, so go on until the span is full or the file ends.
            while done < len(buffer) and (count := handle.readinto(buffer[done:])):
                done += count
    except OSError as error:
        raise _refused(path, error) from None
    if done < len(buffer):
        raise CheckpointError(
            f"{path}: ended at byte {start + done:,}, expected at least {start + len(buffer):,}.", _CUT
        )


def _refused(path: Path, error: OSError) -> UnreadableError:
    return UnreadableError(f"{path}: {error.strerror or error}.", "Check that it is there and that you may read it.")


def _walk(root: Path) -> list[str]:
    """Files below `root`, hidden folders (.git, .cache) left out; symlinks count as what they point to."""
    # os.walk is silent about folders it may not read. That is right below (lost+found), not for the root itself;
    # through "/." the listing also needs the right to enter.
    os.scandir(f"{root}/.").close()
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=False):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        found += [(inside / name).as_posix() for name in names if _is_file(Path(folder, name))]
    return found


def _oddity(path: Path) -> str | None:
    """What a path is that is no file; a folder only where its name is that of weights or of JSON."""
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which is not there"
    if path.is_dir():
        return "a folder" if path.suffix in (".safetensors", ".json") else None
    return None if _is_file(path) else "a pipe or a device"


def _homes(root: Path) -> list[Path]:
    """The folder itself; and of a snapshot in the Hugging Face cache, models--ORG--NAME/snapshots/COMMIT, what its
    links lead to: the blobs of the same repository."""
    for snapshots, repository in pairwise([root, *root.parents]):
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            return [root, repository / "blobs", snapshots]
    return [root]


def _lies_in(path: Path, homes: list[Path]) -> bool:
    real = path.resolve()
    return any(home in real.parents for home in homes)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may be listed but not entered
        return False
