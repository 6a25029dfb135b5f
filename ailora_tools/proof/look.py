"""One module out of the folder, looked at: hashes of its matrices, and what base and adapter make together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.stream import matrix_bytes
from ..linalg.bounds import Comparison, compare
from ..linalg.scale import row_norms
from ..matrices.gather import gather, scatter
from ..output.manifest import ModuleRecord
from ..output.spans import sha256
from ..surgery.blocks import block_mask, own_factors
from .grid import grid_look
from .subject import Reading, Subject

_ROUNDED, _LEAST = 1e-6, 1e-38  # of magnitudes, stored in float32
# What a rule moves is a part of W and no larger; each factor may round up to twice itself below float16's normal range.
# A Nystroem part may be larger than W: its errors are shown, and `init` warns of them.
_UNBOUNDED = ("nystrom",)
_MOST_MOVED, _ROUNDED_UP = 1.05, 4.0


@dataclass(frozen=True)
class Look:
    """One projection as found: hashes of its stored bytes (None: unreadable), what base and adapter make together,
    how large the adapter's part may be, relative to norm(W), and what is wrong with it on the grid of the settings."""

    record: ModuleRecord
    base_sha256: str | None
    source_sha256: str | None
    numbers: Comparison | None
    most_moved: float
    off_grid: str = ""


@dataclass(frozen=True)
class ModuleLook:
    """The projections of one module; what is wrong with its magnitudes, "" if nothing; whether lines of its tensor that
    are no projection differ from the source's; SHA-256 of its factors (None: unreadable); whether B holds anything
    outside of the blocks of its projections."""

    projections: tuple[Look, ...]
    magnitudes: str
    changed_beside: bool
    adapter_sha256: str | None
    strays: bool

    @property
    def module(self) -> str:
        """Its path."""
        return self.projections[0].record.module

    def to_json(self) -> dict[str, Any]:
        """Without the records, which the manifest has."""
        found = [
            {**vars(look), "record": None, "numbers": None if look.numbers is None else vars(look.numbers)}
            for look in self.projections
        ]
        return {**vars(self), "projections": found, "module": self.module}


def module_look(subject: Subject, told: Mapping[str, Any]) -> ModuleLook:
    """What `ModuleLook.to_json` told."""
    fields = dict(told)
    pairs = zip(subject.modules[fields.pop("module")], fields.pop("projections"), strict=True)
    looks = []
    for record, look in pairs:
        numbers = None if look["numbers"] is None else Comparison(**look["numbers"])
        looks.append(Look(**{**look, "record": record, "numbers": numbers}))
    return ModuleLook(projections=tuple(looks), **fields)


def look_at(subject: Subject, reading: Reading) -> ModuleLook:
    """One module that was read."""
    records = reading.records
    looks = tuple(_look(subject, reading, record) for record in records)
    fused = subject.manifest.base and subject.source is not None and records[0].part is not None
    magnitudes = _wrong_magnitudes(reading) if subject.manifest.settings["dora"] else ""
    digest, strays = _adapter_digest(reading), _strays(reading)
    beside = fused and _changed_beside(reading)  # last: it blanks the projections
    return ModuleLook(looks, magnitudes, beside, digest, strays)


def _look(subject: Subject, reading: Reading, record: ModuleRecord) -> Look:
    W, A, B = _projection(reading.source, record), reading.A, reading.B
    base = W if reading.base is reading.source else _projection(reading.base, record)
    if A is not None and B is not None:
        A, B = own_factors(A, B, record, subject.manifest.modules)
        A = subject.unpooled(A)
    scaling, numbers = subject.scaling(record.module), None
    alike = base is not None and (W is None or W.shape == base.shape)
    if (
        base is not None
        and A is not None
        and B is not None
        and scaling is not None
        and alike
        and _fit(record, base, A, B)
    ):
        numbers = compare(base, A, B, scaling, W, record.overlap, lessened=subject.manifest.offset)
    most = math.inf if record.rule in _UNBOUNDED else _MOST_MOVED
    if A is not None and A.dtype == torch.float16:
        most *= _ROUNDED_UP
    digest = _digest(base)
    off_grid = grid_look(base, W, record, str(subject.manifest.settings.get("grid") or ""))
    return Look(record, digest, digest if W is base else _digest(W), numbers, most, off_grid)


def _fit(record: ModuleRecord, base: Tensor, A: Tensor, B: Tensor) -> bool:
    rows, columns = record.shape
    if not all(held.dtype.is_floating_point for held in (base, A, B)):
        return False
    return (base.shape, A.shape, B.shape) == ((rows, columns), (record.rank, columns), (rows, record.rank))


def _projection(stored: Tensor | None, record: ModuleRecord) -> Tensor | None:
    """W (out, in) out of the stored tensor; None if that has another shape."""
    part = record.part
    if stored is None or stored.ndim != 2 or part is None:
        return stored
    lines = stored.shape[1 if part.transposed else 0]
    return gather(stored, part) if max(stop for _, stop in part.runs) <= lines else None


def _digest(W: Tensor | None) -> str | None:
    return None if W is None else sha256(matrix_bytes(W))


def _adapter_digest(reading: Reading) -> str | None:
    parts = [reading.A, reading.B, *([] if reading.magnitude is None else [reading.magnitude])]
    held = [part for part in parts if part is not None]
    return sha256(*map(matrix_bytes, held)) if len(held) == len(parts) else None


def _strays(reading: Reading) -> bool:
    """In a fused module the rows of B that belong to no projection are zero: W^K gets no adapter."""
    B = reading.B
    if B is None or reading.records[0].part is None:
        return False
    if len({(record.outputs, record.part is None) for record in reading.records}) > 1:  # they contradict each other
        return True
    mask = block_mask(reading.records)
    return B.shape != mask.shape or bool((B.double() * (1 - mask)).any())


def _wrong_magnitudes(reading: Reading) -> str:
    """DoRA's magnitudes are the norms of the original's rows, so that they change nothing at step 0."""
    record, held, stored = reading.records[0], reading.magnitude, reading.source
    if held is None or stored is None:
        return f"{record.module} cannot be read"
    part = record.part
    norms = row_norms(stored.T if part is not None and part.transposed else stored)
    alike = held.shape == norms.shape and torch.allclose(held.double(), norms, rtol=_ROUNDED, atol=_LEAST)
    return "" if alike else record.module


def _changed_beside(reading: Reading) -> bool:
    """Whether the other lines of a fused tensor, such as W^K, are not the source's; without the projections in them."""
    here, there = reading.base, reading.source
    if here is None or there is None or here.shape != there.shape:
        return True
    for record in reading.records:
        blank = torch.zeros((), dtype=here.dtype).expand(record.shape)
        here, there = scatter(here, record.part, blank), scatter(there, record.part, blank)
    return not torch.equal(here, there.to(here.dtype))
