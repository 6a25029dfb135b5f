"""What the card of a start tells besides its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...methods import METHODS, Method
from ..loading import Loader
from ..names import ADAPTER_FOLDER, OFFSET_FOLDER
from .source import Source


@dataclass(frozen=True)
class CardFacts:
    """What the card tells besides the numbers. `base` is what a trainer loads as the model, `source` the original as
    a command takes it; `has_base` whether a base is here, `has_offset` whether a frozen adapter stands for it;
    `quantised` whether the original holds the matrices in few bits, `grid` on which grid of few bits the base lies.
    extras: what trains beside the factors, and whether it was made anew. original: what its own card says; library:
    whose model the original is, by the Hub's names."""

    folder: Path
    original: Source
    library: str | None
    method: Method
    ranks: Sequence[int]
    alphas: Sequence[int]
    seed: int
    base: str
    source: str
    has_base: bool
    has_offset: bool
    quantised: bool
    loader: Loader
    dora: bool
    rslora: bool
    bias: str
    grid: str | None = None
    extras: Sequence[tuple[str, bool]] = ()

    @property
    def new_head(self) -> bool:
        """Whether the base lacks a part of the model that trains."""
        return any(anew for _, anew in self.extras)

    @property
    def tags(self) -> list[str]:
        """For the Hub's search."""
        return ["lora", *["dora"] * self.dora, *[self.method.name] * (self.method.name in METHODS)]

    @property
    def adapter(self) -> str:
        return str(self.folder / ADAPTER_FOLDER)

    @property
    def offset(self) -> str:
        return str(self.folder / OFFSET_FOLDER)
