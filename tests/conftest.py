"""A Hub of our own for every test: the environment must name it before huggingface_hub is imported."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kit.hub_server import HubServer

_SERVER = HubServer()
_HOME = tempfile.mkdtemp(prefix="hf-home-")
os.environ |= {
    "HF_ENDPOINT": _SERVER.endpoint,
    "HF_HOME": _HOME,
    "HF_HUB_DOWNLOAD_TIMEOUT": "60",
    "HF_HUB_ETAG_TIMEOUT": "60",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",  # the server speaks the older protocol of uploads
    "NO_PROXY": "127.0.0.1",
}
for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
    os.environ.pop(name, None)


import transformers  # noqa: E402, F401 - loaded once, before tests count threads and memory
from kit.asked_here import Here  # noqa: E402

from ailora_tools.targets import module_tree  # noqa: E402

_APART = module_tree._ask


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Ids that tell what is tested: 64x24, bfloat16, rank 4, method=pissa alpha=6; the rest as pytest does it."""
    match val:
        case torch.dtype():
            return str(val).removeprefix("torch.")
        case Path():
            return val.stem
        case bool() | int() | float():
            return f"{argname} {val}"
        case (int(), int()):
            return f"{val[0]}x{val[1]}"
        case dict() if len(str(val)) < 100:
            return " ".join(f"{key}={value}" for key, value in val.items()) or "nothing"
        case tuple() | list() if val and all(isinstance(word, str) for word in val):
            return " ".join(val)
    return None


@pytest.fixture(autouse=True, scope="session")
def asked_here() -> Iterator[None]:
    """Classes are asked in this process: the one of its own takes seconds to import transformers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_tree, "_ask", Here)
        yield


@pytest.fixture(scope="module")
def asked_apart() -> Iterator[None]:
    """For the tests of a module: classes are asked as for a user, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_tree, "_ask", _APART)
        yield


@pytest.fixture(scope="session")
def hub_server() -> HubServer:
    """The server, for fixtures that outlast a test: they leave it empty."""
    return _SERVER


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The server, empty and without faults; the local cache of the client is emptied, too."""
    _SERVER.reset()
    yield _SERVER
    _SERVER.reset()
    shutil.rmtree(Path(_HOME, "hub"), ignore_errors=True)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
