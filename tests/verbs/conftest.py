"""What the tests of `push` share: folders of every kind that can be pushed, and a Hub that has their source."""

from __future__ import annotations

import pytest
from kit.checkpoints import tree
from kit.hub_server import HubServer, Repo
from kit.shared import SOURCE, Made, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, hub_server: HubServer) -> Made:
    """Made once: no test changes them."""
    return make(tmp_path_factory.mktemp("made"), hub_server)


@pytest.fixture
def source_on_hub(hub: HubServer, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source, and a login."""
    hub.repos[SOURCE] = Repo(tree(made.model))
    monkeypatch.setenv("HF_TOKEN", hub.token)
