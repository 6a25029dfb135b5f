"""What a list holds that several processes work on."""

from __future__ import annotations

from typing import Protocol


class Item(Protocol):
    """Something to be done: a name of its own in the list, what it costs (in any unit, the same for all), and the bytes
    that are read for it."""

    @property
    def name(self) -> str: ...
    @property
    def cost(self) -> float: ...
    @property
    def nbytes(self) -> int: ...
