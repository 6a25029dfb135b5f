"""Inputs that change between a kill and --resume, or during a run: an error, or one of the two results, no mixture."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.fault_rooms import FORMS, OVERWRITE, RESUME, Content, Room, Rooms
from kit.fault_rules import last_line
from kit.faults import HELD, KILL, Done
from kit.tally import Tally
from safetensors import safe_open
from safetensors.torch import load_file, save

BY_NAME = {form.name: form for form in FORMS}
SHARD = "model-00001-of-00002.safetensors"
READS = {
    "init": f"MODEL/{SHARD}", "init --no-base": f"MODEL/{SHARD}", "analyze": f"START/{SHARD}",
    "merge": f"START/{SHARD}", "convert": "TRAINED/adapter_model.safetensors",
}  # fmt: skip
EVERY = 9  # one of so many calls


def trained_on(path: Path) -> bytes:
    """The file with other values, header and size the same."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return save({name: value * 1.5 for name, value in load_file(path).items()}, metadata)


def written_in_place(path: Path) -> None:
    path.write_bytes(trained_on(path))


def replaced(path: Path) -> None:
    """By a file of the same size and time."""
    before = path.stat()
    fresh = path.with_name("fresh")
    fresh.write_bytes(trained_on(path))
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(path)


def lengthened(path: Path) -> None:
    """With more in its header."""
    path.write_bytes(save(load_file(path), {"note": "x" * 999}))


def described_anew(path: Path) -> None:
    """config.json beside it says one thing more."""
    config = path.with_name("config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "note": "changed"}))


CHANGES = (written_in_place, replaced, lengthened, described_anew)
CASES = [
    (name, change)
    for name in READS
    for change in CHANGES
    if change is not described_anew or name in ("init", "merge")  # where config.json is copied along
]


class Changing:
    """A room of which one input changes and is put back."""

    def __init__(self, room: Room, change: Callable[[Path], None]) -> None:
        self.room, self._change = room, change
        folder, _, self._name = READS[room.form.name].partition("/")
        self._folder = room.inputs[folder]
        self._kept = room.kept / "inputs"
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self._folder, self._kept)
        room.back()
        self.change()
        room.run(room.command)
        self.other = room.out()
        self.restore()

    def change(self) -> None:
        self._change(self._folder / self._name)

    def restore(self) -> None:
        """The old input, in other files of the same content and time, and an empty room."""
        shutil.rmtree(self._folder)
        shutil.copytree(self._kept, self._folder)
        self.room.back()

    def ends_well(self, done: Done, *allowed: Content | None) -> Iterator[str]:
        """Refused by name with nothing under OUT, or one of the allowed results."""
        out = self.room.out()
        refused = done.code == 1 and done.printed.count("error: ") == 1
        if not (refused or (done.code == 0 and out is not None)):
            yield f"told: exit {done.code}, {last_line(done)}"
        if out is not None and out not in allowed:
            yield f"whole: exit {done.code} with neither the one nor the other result under OUT"
        again = self.room.run([*self.room.plain, OVERWRITE])
        if again.code != (0 if self.other is not None else 1) or (again.code == 0 and self.room.out() != self.other):
            yield f"again: {OVERWRITE}: exit {again.code}, {last_line(again)}"
        yield from (f"clean: {name} left" for name in self.room.astray())

    def then_resumed(self, at: int) -> Iterator[str]:
        """Killed at a call, changed, gone on with."""
        self.room.run(self.room.command, KILL, at)
        begun = any(name.endswith(".partial/tree") for name in self.room.astray())
        self.change()
        done = self.room.run([*self.room.command, RESUME])
        yield from self.ends_well(done, self.room.finished, *([] if begun else [self.other]))

    def meanwhile(self, at: int) -> Iterator[str]:
        """Changed while the run is held at a call."""
        run = self.room.start(self.room.command, HELD, at)
        if run.wait() is None:
            self.change()
            yield from self.ends_well(run.go_on(), self.room.finished, self.other)


def look_at(name: str, change: Callable[[Path], None], rooms: Rooms, when: str, places: slice) -> None:
    changing, tally = Changing(rooms(BY_NAME[name]), change), Tally(f"an input changes {when}")
    for number, call in changing.room.points(HELD)[places]:
        broken = changing.then_resumed(number) if when == "before --resume" else changing.meanwhile(number)
        tally.add(f"{name}, {change.__name__}, at {number} {call.name} {call.path}", list(broken))
        changing.restore()
    tally.close()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_in_the_middle_of_init(change: Callable[[Path], None], rooms: Rooms) -> None:
    look_at("init", change, rooms, "during the run", slice(80, 81))
    look_at("init", change, rooms, "before --resume", slice(80, 81))


@pytest.mark.faults
@pytest.mark.parametrize(("name", "change"), CASES)
def test_a_change_during_the_run(name: str, change: Callable[[Path], None], rooms: Rooms) -> None:
    look_at(name, change, rooms, "during the run", slice(0, None, EVERY))


@pytest.mark.faults
@pytest.mark.parametrize(("name", "change"), [case for case in CASES if BY_NAME[case[0]].resumable])
def test_a_change_before_resume(name: str, change: Callable[[Path], None], rooms: Rooms) -> None:
    look_at(name, change, rooms, "before --resume", slice(0, None, EVERY))
