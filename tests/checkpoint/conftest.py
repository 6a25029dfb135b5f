"""A folder whose permissions a test may take away."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder with a file of weights and a config that others can reach, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "config.json").write_bytes(b"{}")
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)
