"""The projections of one checkpoint: each by itself, and grouped by the tensors that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..matrices.layouts import Part
from ..matrices.quantisation import Quantised


@dataclass(frozen=True)
class Target:
    """One projection: what it is, and its module's path in memory.

    `shape` is that of W, (out, in). `start` and `stop` are the absolute offsets of the tensor, which has
    `stored_shape`; where it is fused, `part` tells which of its lines are W.
    """

    role: str
    layer: int
    stack: str
    tensor: str
    module: str
    file: str
    dtype: str
    shape: tuple[int, int]
    start: int
    stop: int
    stored_shape: tuple[int, int]
    part: Part | None = None
    quantised: Quantised | None = None

    @property
    def stored_as(self) -> str:
        """The dtype, or the format of few bits."""
        return self.quantised.label if self.quantised else self.dtype

    @property
    def sides(self) -> tuple[int, int]:
        """(out, in) of the module; the tensor of a Conv1D is stored (in, out)."""
        rows, columns = self.quantised.shape if self.quantised else self.stored_shape
        return (columns, rows) if self.part is not None and self.part.transposed else (rows, columns)

    @property
    def label(self) -> str:
        """Such as "q 3" or "v decoder cross 3"."""
        return " ".join(part for part in (self.role, self.stack, str(self.layer)) if part)


@dataclass(frozen=True)
class Unit:
    """One stored tensor with the targets in it: what is read, worked on and written at once."""

    targets: tuple[Target, ...]

    @property
    def file(self) -> str:
        return self.targets[0].file

    @property
    def tensor(self) -> str:
        return self.targets[0].tensor

    @property
    def module(self) -> str:
        return self.targets[0].module

    @property
    def dtype(self) -> str:
        return self.targets[0].dtype

    @property
    def shape(self) -> tuple[int, int]:
        """As stored."""
        return self.targets[0].stored_shape

    @property
    def start(self) -> int:
        return self.targets[0].start

    @property
    def stop(self) -> int:
        return self.targets[0].stop

    @property
    def quantised(self) -> Quantised | None:
        return self.targets[0].quantised

    @property
    def transposed(self) -> bool:
        """Whether the tensor is stored (in, out), as in a Conv1D."""
        part = self.targets[0].part
        return part is not None and part.transposed

    @property
    def sides(self) -> tuple[int, int]:
        """(out, in) of the module."""
        return self.targets[0].sides

    @property
    def label(self) -> str:
        return ", ".join(target.label for target in self.targets)


@dataclass(frozen=True)
class Plan:
    """The targets in reading order (file, offset), and what the user should know about their choice."""

    model_type: str | None
    family: str
    targets: tuple[Target, ...]
    notices: tuple[str, ...]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The tensors that hold the targets, in reading order."""
        groups: dict[str, list[Target]] = {}
        for target in self.targets:
            groups.setdefault(target.tensor, []).append(target)
        return tuple(Unit(tuple(group)) for group in groups.values())

    @property
    def reads(self) -> list[tuple[str, int]]:
        """(file, bytes) of every tensor that holds targets, and of what belongs to quantised ones."""
        return [(unit.file, unit.stop - unit.start) for unit in self.units] + [
            (piece.file, piece.stop - piece.start)
            for unit in self.units
            for what, piece in (unit.quantised.pieces.items() if unit.quantised else ())
            if what != "main"
        ]

    @property
    def read_bytes(self) -> int:
        return sum(nbytes for _, nbytes in self.reads)
