"""What holds after a run that met a fault, however it ended.

whole       under the final name is nothing, the folder that was there, or the finished one, never a part of it
told        an error is one message and exit code 1, never a traceback
untouched   inputs and whatever else lies beside the output are what they were
named       a plain run afterwards works, or says what is in its way
again       going on, or starting again, gives the bytes of an undisturbed run
clean       and then nothing is left beside them
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

from kit.fault_rooms import OVERWRITE, RESUME, Room
from kit.faults import TEAR, Done, Fault


def broken_rules(room: Room, fault: Fault, at: int = 0, **limits: int) -> list[str]:
    """Run the room's command with a fault at a call, then what a user would do next; the rules that did not hold."""
    room.back()
    return broken_after(room, fault, room.run(room.command, fault, at, **limits))


def broken_after(room: Room, fault: Fault, done: Done) -> list[str]:
    """The rules that do not hold after this run, and after what a user would do next."""
    faults = [*untold(room, fault, done), *not_whole(room), *touched(room)]
    ways = list(ways_on(room, fault, done))
    # Of two runs that leave the same, what comes next is tried once: it is what takes the time.
    state = (room.state(), str(ways))
    if state not in room.followed:
        room.keep("after")
        room.followed[state] = list(followed(room, ways))
    return faults + room.followed[state]


def followed(room: Room, ways: Sequence[list[str]]) -> Iterator[str]:
    """What goes wrong in runs that follow, each from the same state."""
    for command in ways:
        room.back("after")
        name = " ".join(command[len(room.plain) :]) or "again"
        yield from (f"{name}: {what}" for what in went_wrong(room, command))


def untold(room: Room, fault: Fault, done: Done) -> Iterator[str]:
    """A killed run says nothing; every other one succeeds or names one problem; `verify` never succeeds by a fault."""
    named = done.code == 1 and done.printed.count("error: ") == 1
    if fault.action:
        right = done.code in (0, *ends(fault.action))
    elif room.form.writes:
        right = done.code == 0 or named
    else:
        right = done.code == 3 or named
    if not right:
        yield f"told: exit {done.code}, {last_line(done)}"


def ends(action: int) -> tuple[int, ...]:
    """Exit codes of a program that a signal ends, by the signal itself or as shells count."""
    number = signal.SIGKILL if action == TEAR else action
    return -number, 128 + number


def not_whole(room: Room) -> Iterator[str]:
    """The final name holds all or nothing."""
    if room.out() not in (None, room.older, room.finished):
        yield "whole: OUT holds something else"


def touched(room: Room) -> Iterator[str]:
    """Inputs and bystanders; new names beside OUT are looked at after the next run."""
    if room.inputs_now() != room.given:
        yield "untouched: an input changed"
    if gone := [name for name in room.astray() if name in room.bystanders]:
        yield f"untouched: {', '.join(gone)}"


def ways_on(room: Room, fault: Fault, done: Done) -> Iterator[list[str]]:
    """After a kill everything a user may try; after an error what the message advises; nothing after a success."""
    if done.code == 0 and room.out() == room.finished and not room.astray():
        return
    if fault.action or (room.older is not None and room.out() is None):
        yield room.plain
    if room.form.writes and (fault.action or not room.form.resumable):
        yield [*room.plain, OVERWRITE]
    if room.form.resumable:
        yield [*room.command, RESUME]


def went_wrong(room: Room, command: list[str]) -> Iterator[str]:
    """The next run gives the same bytes and leaves nothing; without leave to replace it may say what is in the way."""
    stood = room.out() == room.finished
    done = room.run(command)
    yield from touched(room)
    plain = command == room.plain
    if done.code == 1 and (plain or stood):
        yield from unnamed(room, done)
        if not stood and plain:
            return
    elif done.code:
        yield f"again: exit {done.code}, {last_line(done)}"
        return
    if room.out() != room.finished:
        yield f"again: other bytes in {', '.join(differing(room))}"
    if left := [name for name in room.astray() if name not in room.bystanders]:
        yield f"clean: {', '.join(left)} left"


def unnamed(room: Room, done: Done) -> Iterator[str]:
    """A refusal names something that is there, and lets the folder stand that was there before."""
    if done.printed.count("error: ") != 1 or not any(str(path) in done.printed for path in room.path.iterdir()):
        yield f"named: {last_line(done)}"
    if room.out() not in ((room.older, room.finished) if room.older is not None else (None, room.finished)):
        yield "whole: the folder that was there is not back"


def differing(room: Room) -> list[str]:
    """Files of OUT that are not those of an undisturbed run."""
    now, finished = room.out() or {}, room.finished or {}
    return sorted(name for name in now | finished if now.get(name) != finished.get(name))[:4] or [
        "OUT, which is absent"
    ]


def last_line(done: Done) -> str:
    """The end of a traceback, or the message."""
    lines = done.printed.strip().splitlines() or ["nothing printed"]
    found = [line for line in lines if line.startswith("error: ")] or lines[-1:]
    return found[0][:200]
