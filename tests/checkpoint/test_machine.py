"""Sizes as users write them, and what a machine and its containers leave free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ailora_tools.checkpoint.machine import Share, free_memory, parse_size, share
from ailora_tools.errors import OptionError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8GB", 8 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 << 29), ("2T", 2 * 10**12), ("4096", 4096), (7, 7)],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "much", "8 apples", "-1GB", "0", "0.0GB", "1e9", "GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="is no size"):
        parse_size(text)


def machine(folder: Path, available: int, groups: dict[str, tuple[str, int, int]]) -> tuple[Path, Path]:
    """/proc/meminfo, and control groups of version 2 as (limit, use, cache)."""
    meminfo = folder / "meminfo"
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\n")
    for name, (limit, used, cache) in groups.items():
        place = folder / "cgroup" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.max").write_text(limit)
        (place / "memory.current").write_text(str(used))
        (place / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    return folder / "cgroup", meminfo


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({}, 1 << 30),
        ({"": ("max", 5, 0)}, 1 << 30),
        ({"": (str(1 << 29), 1 << 28, 0)}, 1 << 28),
        ({"": (str(1 << 29), 1 << 28, 1 << 20)}, (1 << 28) + (1 << 20)),
        ({"": (str(1 << 28), 1 << 29, 0)}, 0),
    ],
)
def test_free_is_what_the_tightest_group_leaves(
    groups: dict[str, tuple[str, int, int]], free: int, tmp_path: Path
) -> None:
    assert free_memory(*machine(tmp_path, 1 << 30, groups)) == free


def test_a_system_that_tells_nothing_still_has_some(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "none", tmp_path / "none") > 0


@pytest.mark.parametrize(
    ("memory", "count"), [(100, 1), (1000, 1), (1100, 1), (1199, 1), (1200, 2), (1700, 7), (10**9, 8)]
)
def test_matrices_at_once_fit_cores_and_memory_and_are_never_none(memory: int, count: int) -> None:
    assert Share(8, memory).at_once(1000, 100) == count


def test_processes_on_one_machine_divide_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert share(8 << 30).memory == 2 << 30
    assert share().cores <= torch.get_num_threads()
