"""A process by itself is a team of one: the same code without sockets; and the parts that need no second process."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools import initialize
from ailora_tools.checkpoint.transfer import Traffic
from ailora_tools.display.bar import TOGETHER
from ailora_tools.errors import TeamError
from ailora_tools.output.manifest import read_manifest
from ailora_tools.progress import Standing
from ailora_tools.team import board, team
from ailora_tools.team import standing as room
from ailora_tools.team.board import Alone, Shared
from ailora_tools.team.part import Mail, Part, Spool
from ailora_tools.team.place import Place, read_place
from ailora_tools.team.pulse import Sign
from ailora_tools.team.team import Job
from ailora_tools.verbs.processes import credit, require_alike, spent

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host",
            "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "3", "TORCHELASTIC_RUN_ID": "run",
            "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
KIND = {"cpu": "A", "device": "cpu", "threads": 1}
BLOBS = [b"x" * 10, b"", bytes(range(256)) * 40]


@dataclass(frozen=True)
class Thing:
    """Something to be done."""

    name: str
    cost: float
    nbytes: int


class Store:
    """What of torch's store is used, in memory."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def set(self, key: str, value: bytes | str) -> None:
        self.held[key] = value.encode() if isinstance(value, str) else value

    def get(self, key: str) -> bytes:
        return self.held[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.held for key in keys)

    def add(self, key: str, step: int) -> int:
        self.held[key] = str(int(self.held.get(key, b"0")) + step).encode()
        return int(self.held[key])

    def delete_key(self, key: str) -> None:
        del self.held[key]


def test_the_place_is_what_torchrun_says() -> None:
    assert read_place(TORCHRUN) == Place(1, 2, 1, 2, 3, "run", "host", 29500, hosted=True)


@pytest.mark.parametrize("change", [{"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": ""}, {"MASTER_ADDR": ""}, {"RANK": "2"}])
def test_without_all_of_it_a_process_is_alone(change: dict[str, str]) -> None:
    assert read_place({**TORCHRUN, **change}) == Place()


@pytest.mark.parametrize("count", ["0", "two", ""])
def test_a_machine_has_one_of_its_processes_at_least(count: str) -> None:
    assert read_place({**TORCHRUN, "LOCAL_WORLD_SIZE": count}).beside == 1


def test_a_team_of_one_opens_no_socket_and_starts_no_pulse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for place, name in ((socket, "socket"), (team, "connect"), (board, "connect"), (team.Pulse, "start")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("opened"))
    team.find_team.cache_clear()
    initialize(write_checkpoint(tmp_path / "model", llama_tensors()), 2, output=tmp_path / "out")
    assert "processes" not in read_manifest(tmp_path / "out").tool
    assert "pulse" not in {thread.name for thread in threading.enumerate()}


def test_a_part_comes_back_from_a_file_as_it_was_put(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put("../a/b", Part({"number": 0.1}, BLOBS, 3, spare=1))
    (name, part), *rest = spool.arrived()
    assert (name, part.meta, part.rank, rest) == ("../a/b", {"number": 0.1}, 3, [])
    assert [bytes(blob) for blob in part.blobs] == BLOBS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: data[:-1] + b"?", lambda data: data[:5]])
def test_a_damaged_part_counts_for_nothing(harm: Any, tmp_path: Path) -> None:
    Spool(tmp_path).put("a", Part({}, BLOBS))
    path = next(tmp_path.iterdir())
    path.write_bytes(harm(path.read_bytes()))
    assert list(Spool(tmp_path).arrived()) == [] and not path.exists()


def test_a_part_comes_back_from_the_store_without_what_can_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_CHUNK", 100)
    store = Store()
    mail = Mail(Shared(store, "job/"), "list/mail")
    assert list(mail.arrived()) == []
    mail.put("a", Part({"long": "y" * 1000}, BLOBS, 2, spare=1))
    ((name, part),) = mail.arrived()
    assert (name, part.meta, part.rank, list(part.blobs)) == ("a", {"long": "y" * 1000}, 2, BLOBS[:2])
    assert list(mail.arrived()) == []


def test_a_process_of_another_kind_is_refused_or_named() -> None:
    job = Job(Place(1, 2), Alone(), Alone())
    assert require_alike(job, KIND, dict(KIND), mixed=False) is None
    with pytest.raises(TeamError, match=r"process 1 of 2 .* cpu 'B' \(the first process: 'A'\)"):
        require_alike(job, KIND, {**KIND, "cpu": "B"}, mixed=False)
    assert require_alike(job, KIND, {**KIND, "cpu": "B", "threads": 2}, mixed=True) == "cpu: B, threads: 2"


def test_the_standing_counts_all_processes_and_names_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Thing(f"item {number}", 10.0, 100) for number in range(8)]
    job = Job(Place(0, 3), Alone(), Alone())
    clock = iter((0.0, 6.0))
    monkeypatch.setattr(room, "monotonic", lambda: next(clock))
    look = room.standing(job, items, items[2:])  # two were done before an interruption
    job.pulse.done(100, 10.0)
    for rank, done in ((1, 2), (2, 0)):
        job.pulse.signs[rank] = Sign({"done": done, "bytes": 100 * done, "cost": 10.0 * done}, 0)
    now = Standing(3, 5, 8, 300, 6.0, 2)
    assert look() == now
    assert [tell(now) for _, tell in TOGETHER] == ["5/8", "0:06 left", "3 processes", "300 bytes", "slowest: process 2"]


def test_what_others_read_is_counted_once() -> None:
    theirs, ours = Traffic(), Traffic()
    theirs.count(10, 2, 1)
    assert spent(theirs) == [10, 2, 1]
    theirs.count(5, 1)
    for rank in (0, 1):  # what this process read for its own part is counted already
        credit(ours, Part({"spent": spent(theirs)} if rank else {"spent": [9, 9, 9]}, rank=rank))
    assert ours == Traffic(5, 1, 0, ours._lock)
