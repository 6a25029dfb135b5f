"""One server and one set of inputs for all tests here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kit.fault_rooms import Form, Room, Rooms, inputs
from kit.faults import UNABLE, FaultServer, fault_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    if UNABLE:
        pytest.skip(UNABLE)
    with fault_server(tmp_path_factory.mktemp("faults")) as found:
        yield found


@pytest.fixture(scope="session")
def given(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return inputs(server, tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="session")
def rooms(server: FaultServer, given: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    """The room of each form, made when it is first asked for."""
    made: dict[str, Room] = {}

    def room(form: Form) -> Room:
        if form.name not in made:
            folder = tmp_path_factory.mktemp("room")
            made[form.name] = Room(form, server, given, folder / "here", folder)
        return made[form.name]

    return room
