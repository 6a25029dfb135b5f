"""What one job may take of this machine: cores and memory, by what is free and by what a container is given."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError
from ..team.place import read_place

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", re.IGNORECASE)
_SHARE = 0.7  # of what is free: others start programs too, and the file cache speeds up copying
_BLIND = 4 << 30  # where a system does not tell
_CGROUP = Path("/sys/fs/cgroup")
_VERSIONS = (  # files with the limit and the use of a group, and what of the use is cache
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def parse_size(text: str | int) -> int:
    """Bytes of "8GB", "500 MB", "1.5GiB" or a plain number; OptionError for anything else, and for zero."""
    found = _SIZE.fullmatch(str(text).strip())
    nbytes = int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    if not nbytes:
        raise OptionError(f"memory {text!r} is no size.", "Such as 8GB, 500MB or 1.5GiB.")
    return nbytes


@dataclass(frozen=True)
class Share:
    """Cores and bytes of memory that one process may use."""

    cores: int
    memory: int

    def at_once(self, fixed: int, each: int) -> int:
        """How many matrices to work on at a time, a core each, in `fixed` bytes and `each` for every one."""
        return max(1, min(self.cores, (self.memory - fixed) // max(1, each)))


def share(memory: int | None = None) -> Share:
    """This process's part of the machine: the threads that torch was given (OMP_NUM_THREADS, torch.set_num_threads),
    and `memory` bytes or 70 % of what is free; less where a container has less. Processes that torchrun started on one
    machine divide the memory between them."""
    import torch

    free = int(_SHARE * free_memory()) if memory is None else memory
    return Share(max(1, min(torch.get_num_threads(), _quota())), free // read_place().beside)


def free_memory(root: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can be had without swapping: MemAvailable of Linux (elsewhere half of what is built in), and no more
    than the control group that this process is in has left."""
    return max(0, min([_available(meminfo), *_left_in_groups(root)]))


def _available(meminfo: Path) -> int:
    with suppress(OSError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    with suppress(OSError, ValueError, AttributeError):  # macOS; Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return _BLIND


def _left_in_groups(root: Path) -> list[int]:
    """Limit less use of every group from this process's up to the root, without the file cache, which gives way."""
    found = []
    for folder in _groups(root):
        for limit, used, cache in _VERSIONS:
            with suppress(OSError, ValueError):
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                found.append(left + _counted(folder / "memory.stat").get(cache, 0))
    return found


def _groups(root: Path) -> list[Path]:
    """Folders of the groups of this process and those around them; in a container its own is the root."""
    folders = [root, root / "memory"]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds in ("", "memory"):
                inside = root / kinds / place.strip("/")
                folders += [folder for folder in (inside, *inside.parents) if root in folder.parents]
    return list(dict.fromkeys(folders))


def _counted(path: Path) -> dict[str, int]:
    with suppress(OSError, ValueError):
        lines = (line.split() for line in path.read_text().splitlines())
        return {name: int(value) for name, value in lines}
    return {}


def _quota(root: Path = _CGROUP) -> int:
    """Whole cores that a container may use at a time; very many where it is not limited."""
    with suppress(OSError, ValueError):
        allowed, period = (root / "cpu.max").read_text().split()
        return max(1, -(-int(allowed) // int(period)))
    return 1 << 20
