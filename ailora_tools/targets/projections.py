"""The projections of one checkpoint: each by itself, and grouped by the tensors that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..checkpoint.header import StoredTensor
from ..matrices.layouts import Part
from ..matrices.quantisation import Quantised


@dataclass(frozen=True)
class Target:
    """One projection: what it is, its module's path in memory, and the tensor that holds it.

    `shape` is that of W, (out, in). Where the tensor is fused, `part` tells which of its lines are W; where it is
    quantised, `stored` is its main piece.
    """

    role: str
    layer: int
    stack: str
    module: str
    shape: tuple[int, int]
    stored: StoredTensor
    part: Part | None = None
    quantised: Quantised | None = None

    @property
    def tensor(self) -> str:
        """Name in the checkpoint."""
        return self.stored.name

    @property
    def stored_as(self) -> str:
        """The dtype, or the format of few bits."""
        return self.quantised.label if self.quantised else self.stored.dtype

    @property
    def sides(self) -> tuple[int, int]:
        """(out, in) of the module; the tensor of a Conv1D is stored (in, out)."""
        rows, columns = self.quantised.shape if self.quantised else self.stored.shape
        return (columns, rows) if self.part is not None and self.part.transposed else (rows, columns)

    @property
    def label(self) -> str:
        """Such as "q 3" or "v decoder cross 3"."""
        return " ".join(part for part in (self.role, self.stack, str(self.layer)) if part)


@dataclass(frozen=True)
class Carrier:
    """One stored tensor with the targets in it: what is read, worked on and written at once."""

    targets: tuple[Target, ...]

    @property
    def stored(self) -> StoredTensor:
        return self.targets[0].stored

    @property
    def module(self) -> str:
        return self.targets[0].module

    @property
    def quantised(self) -> Quantised | None:
        return self.targets[0].quantised

    @property
    def fused(self) -> bool:
        """Whether the targets are only some lines of the tensor."""
        return self.targets[0].part is not None

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
    """The targets in reading order (file, offset), and what the user should know about their choice.

    unbuilt: tensors like them for which the class has no module, and why, as the end of "because they ...". counted:
    whether config.json alone tells which those are, proven by tests for this type. types: the model type and those of
    the parts by whose config the layers are built.
    """

    model_type: str | None
    family: str
    targets: tuple[Target, ...] = field(repr=False)
    notices: tuple[str, ...]
    unbuilt: Mapping[str, str] = field(default_factory=dict, repr=False)
    counted: bool = False
    types: frozenset[str] = frozenset()

    @cached_property
    def carriers(self) -> tuple[Carrier, ...]:
        """The tensors that hold the targets, in reading order."""
        groups: dict[str, list[Target]] = {}
        for target in self.targets:
            groups.setdefault(target.tensor, []).append(target)
        return tuple(Carrier(tuple(group)) for group in groups.values())

    @property
    def reads(self) -> list[tuple[str, int]]:
        """(file, bytes) of every tensor that holds targets, and of what belongs to quantised ones."""
        mains = [carrier.stored for carrier in self.carriers]
        pieces = [
            piece
            for carrier in self.carriers
            for what, piece in (carrier.quantised.pieces.items() if carrier.quantised else ())
            if what != "main"
        ]
        return [(stored.file, stored.nbytes) for stored in [*mains, *pieces]]

    @property
    def read_bytes(self) -> int:
        return sum(nbytes for _, nbytes in self.reads)
