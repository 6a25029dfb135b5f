"""Where a process stands in its job, as torchrun, accelerate and srun tell it by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """`rank` of `size` processes, the `local`-th of `beside` on its machine; `restarts`: how often torchrun has started
    all of them anew. host, port: of the store. hosted: by torchrun's agent, so that it outlives every process."""

    rank: int = 0
    size: int = 1
    local: int = 0
    beside: int = 1
    restarts: int = 0
    run: str = "none"
    host: str = ""
    port: int = 0
    hosted: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process owns the output and speaks to the user."""
        return self.rank == 0


def read_place(environment: Mapping[str, str] = os.environ) -> Place:
    """That of a process by itself unless RANK, WORLD_SIZE above 1, MASTER_ADDR and MASTER_PORT are set.

    https://docs.pytorch.org/docs/stable/elastic/run.html names the variables.
    """

    def number(name: str, default: int) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else default

    rank, size, port = number("RANK", -1), number("WORLD_SIZE", 1), number("MASTER_PORT", 0)
    host = environment.get("MASTER_ADDR", "")
    if size < 2 or not 0 <= rank < size or not host or not port:
        return Place()
    return Place(
        rank, size, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1) or 1,
        number("TORCHELASTIC_RESTART_COUNT", 0), environment.get("TORCHELASTIC_RUN_ID", "none"), host, port,
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )  # fmt: skip
