"""Two runs on one output: while the first is held at a call, the second is refused, or the first is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.fault_rooms import FORMS, OVERWRITE, RESUME, Content, Room, Rooms
from kit.fault_rules import last_line, touched
from kit.faults import HELD, Done
from kit.tally import Tally

BY_NAME = {form.name: form for form in FORMS}
CONVERT = BY_NAME["convert"].line
PAIRS = (
    ("init", BY_NAME["init"].line),
    ("init", f"{BY_NAME['init'].line} {RESUME}"),
    ("init", f"init MODEL --rank 2 --method pissa -o OUT {OVERWRITE}"),
    ("init --overwrite", f"init MODEL --rank 2 --method pissa -o OUT {OVERWRITE}"),
    ("init", CONVERT),
    ("init", f"{CONVERT} {OVERWRITE}"),
    ("analyze", f"analyze MODEL --rank 2 -o OUT {OVERWRITE}"),
    ("convert", "merge START TRAINED -o OUT"),
    ("merge", "merge START TRAINED -o OUT"),
    ("merge --overwrite", f"merge START TRAINED --base-dtype float32 -o OUT {OVERWRITE}"),
    ("export --to mlx", f"export START --to mlx -o OUT {OVERWRITE}"),
)
EVERY = 6  # one of so many calls


def alone(room: Room, command: list[str]) -> Content | None:
    """What the command writes when nobody disturbs it."""
    room.back()
    room.run(command)
    return room.out()


def together(room: Room, second: list[str], other: Content | None, at: int) -> Iterator[str]:
    """Hold the first at a call, run the second, let the first go on; what is wrong then."""
    room.back()
    first = room.start(room.command, HELD, at)
    if first.wait() is not None:
        return  # this time it was done before
    published = room.out() == room.finished
    later = room.run(second)
    earlier = first.go_on()
    out = room.out()
    for name, done in (("first", earlier), ("second", later)):
        if not right(room, done):
            yield f"told: the {name} ends with exit {done.code}, {last_line(done)}"
    # One after the other is no fault: the first had not begun, and replaced the second's, or was as good as done.
    begun_late = at == 1 and bool(room.form.older) and earlier.code == 0
    if earlier.code == 0 and later.code == 0 and not (published or begun_late):
        yield "both succeeded"
    last = "second" if later.code == 0 and not begun_late else "first"
    if out is None or out != (other if last == "second" else room.finished):
        yield f"whole: OUT is not what the {last} writes"
    if earlier.code and later.code:
        yield f"neither succeeded: {last_line(earlier)}, {last_line(later)}"
    yield from touched(room)
    yield from (f"clean: {name} left" for name in room.astray())


def right(room: Room, done: Done) -> bool:
    """Success, or a refusal that names the output."""
    named = done.printed.count("error: ") == 1 and str(room.inputs["OUT"]) in done.printed
    return done.code == 0 or (done.code == 1 and named)


def look_at(room: Room, line: str, step: int, places: slice) -> None:
    second = room.words(line)
    other, tally = alone(room, second), Tally("two runs on one output")
    for number, call in room.points(HELD)[::step][places]:
        where = f"{room.form.name} held at {number} {call.name} {call.path}, then {line}"
        tally.add(where, list(together(room, second, other, number)))
    tally.close()


@pytest.mark.parametrize("pair", [PAIRS[2], PAIRS[8]], ids=" | ".join)
def test_two_at_once_in_the_middle(pair: tuple[str, str], rooms: Rooms) -> None:
    look_at(rooms(BY_NAME[pair[0]]), pair[1], 30, slice(1, 2))


@pytest.mark.faults
@pytest.mark.parametrize("pair", PAIRS, ids=" | ".join)
def test_two_at_once(pair: tuple[str, str], rooms: Rooms) -> None:
    look_at(rooms(BY_NAME[pair[0]]), pair[1], EVERY, slice(None))
