"""Ctrl-C, a closed terminal and a polite end, at many points of a run: what is finished is kept or gone, never half."""

from __future__ import annotations

import signal

import pytest
from kit.fault_rooms import FORMS, Form, Rooms
from kit.fault_rules import broken_rules
from kit.faults import Fault
from kit.tally import Tally

SIGNALS = tuple(Fault(f"{number.name} at a call", number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
EVERY = 7  # one of so many calls


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("fault", SIGNALS, ids=lambda fault: fault.name)
def test_a_signal(form: Form, fault: Fault, rooms: Rooms) -> None:
    room, tally = rooms(form), Tally(f"{fault.name}: {form.verb}")
    for number, call in room.points(fault)[::EVERY]:
        tally.add(f"{form.name} {number} {call.name} {call.path}", broken_rules(room, fault, number))
    tally.close()
