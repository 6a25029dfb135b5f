"""Files that may not grow, disks that are too small, few open files: named, and right once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.fault_rooms import FORMS, Form, Room, Rooms, content
from kit.fault_rules import broken_after, broken_rules, last_line
from kit.faults import Fault, FaultServer
from kit.tally import Tally

LIMIT = Fault("a limit of the system")
SIZES = (1000, 2000, 4000, 10_000, 20_000, 35_000, 60_000)  # bytes; a message has room in the smallest
PAGES = (0, 1, 2, 3, 5, 8, 13, 21, 300)  # free ones of 4 KiB
INODES = (0, 1, 2, 3, 5, 8)  # new files and folders
FEW = 32  # open files


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_limit_for_the_size_of_files(form: Form, rooms: Rooms) -> None:
    room, tally = rooms(form), Tally("files may not grow beyond 1,000 to 60,000 bytes")
    for size in SIZES:
        tally.add(f"{form.name}, {size} bytes", broken_rules(room, LIMIT, RLIMIT_FSIZE=size))
    tally.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, whose size `resize` changes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def too_small(disk: Path) -> list[str]:
    """Options that leave room for a few more pages of 4 KiB or a few more files."""
    now = os.statvfs(disk)
    pages, files = now.f_blocks - now.f_bfree, now.f_files - now.f_ffree
    return [f"size={4 * (pages + more)}k" for more in PAGES] + [f"nr_inodes={files + more}" for more in INODES]


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a file system")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_disk_that_is_too_small(
    form: Form, disk: Path, server: FaultServer, given: Mapping[str, Path], tmp_path: Path
) -> None:
    room, tally = Room(form, server, given, disk / "here", tmp_path / "kept"), Tally("a real disk that is too small")
    room.back()
    for small in too_small(disk):
        room.back()
        resize(disk, small)
        done = room.run(room.command)
        resize(disk, "size=64m,nr_inodes=9999")
        tally.add(f"{form.name}, {small}", broken_after(room, LIMIT, done))
    tally.close()


@pytest.mark.faults
def test_few_open_files_and_many_shards(server: FaultServer, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors(layers=12), 60)
    tally, out = Tally("60 shards and 32 open files"), tmp_path / "out"
    lines = (
        f"init {model} --rank 4 -o {out}/init", f"verify {out}/init --source {model}",
        f"init {model} --rank 4 --base-dtype float32 -o {out}/wide", f"analyze {model} --against {out}/init -o {out}/a",
        f"merge {out}/init {out}/init/ailora_init -o {out}/merged",
        f"convert {out}/init/ailora_init --init {out}/init -o {out}/plain", f"inspect {model}",
    )  # fmt: skip
    for line in lines:
        done = server.run(line.split(), tmp_path, RLIMIT_NOFILE=FEW)
        tally.add(line, [f"exit {done.code}, {last_line(done)}"] if done.code else [])
    few = content(out)
    shutil.rmtree(out)
    for line in lines:
        server.run(line.split(), tmp_path)
    tally.add("the same bytes", [] if content(out) == few else ["other bytes"])
    tally.close()
