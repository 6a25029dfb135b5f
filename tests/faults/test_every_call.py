"""A run that is killed before a file-system call, or meets an error there, loses nothing and leaves nothing broken.

`make test` takes a few calls of every form; `make faults` takes all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from kit.fault_rooms import FORMS, VERIFY, Form, Room, Rooms
from kit.fault_rules import broken_rules
from kit.faults import BROKEN, FULL, FULL_ONCE, KILL, KILLED_READING, TORN, UNREADABLE, Call, Fault
from kit.tally import Tally

WRITING = (KILL, TORN, FULL_ONCE, FULL, BROKEN)
READING = (UNREADABLE, KILLED_READING)
SAMPLE = {KILL: (0.4, 0.98), FULL: (0.6,), BROKEN: (0.999,), UNREADABLE: (0.8,)}  # how far into the run


def named(value: Form | Fault) -> str:
    return value.name


def look_at(room: Room, fault: Fault, points: Sequence[tuple[int, Call]]) -> None:
    tally = Tally(f"{fault.name}: {room.form.verb}")
    for number, call in points:
        where = f"{room.form.name} {number}/{len(room.points(fault))} {call.name} {call.path}"
        tally.add(where, broken_rules(room, fault, number))
    tally.close()


@pytest.mark.parametrize("form", [*FORMS, VERIFY], ids=named)
def test_some_calls(form: Form, rooms: Rooms) -> None:
    room = rooms(form)
    for fault, places in SAMPLE.items():
        if points := room.points(fault):
            look_at(room, fault, [points[int(place * len(points))] for place in places])


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS, ids=named)
@pytest.mark.parametrize("fault", (*WRITING, UNREADABLE), ids=named)
def test_every_call(form: Form, fault: Fault, rooms: Rooms) -> None:
    look_at(rooms(form), fault, rooms(form).points(fault))


@pytest.mark.faults
@pytest.mark.parametrize("fault", READING, ids=named)
def test_every_read_of_verify(fault: Fault, rooms: Rooms) -> None:
    look_at(rooms(VERIFY), fault, rooms(VERIFY).points(fault))
