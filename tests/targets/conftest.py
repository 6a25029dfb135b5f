"""The questions to the class are tested here, so they are asked as for a user."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def _asked_apart(asked_apart: None) -> None:
    """A process of its own for each question, but where a test says otherwise."""
