"""Whether the base holds what was written, and whether base and adapter make the source again, matrix by matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.stream import matrix_bytes
from ..errors import listed
from ..linalg.bounds import Bounds, rounding_bounds
from ..linalg.recombine import NEAR, Recombination, recombine
from ..matrices.gather import gather, scatter
from ..methods import RULES
from ..output.manifest import ModuleRecord
from ..output.spans import sha256
from ..progress import Progress
from ..surgery.blocks import block_mask, own_factors
from .folder import Check
from .grid import grid_fault
from .subject import Reading, Subject

# A recorded error may differ from the one found here by the order of sums, and by the subtraction's own rounding, which
# `rounding_bounds` gives as `noise`: 4 + r times eps(float32) of what was subtracted for a base in 16 bits.
_SLACK = 1e-3
_ROUNDED, _LEAST = 1e-6, 1e-38  # of magnitudes, stored in float32
_POOR = 0.01  # of norm(W): more than this is not the original any more, however honestly it was rounded
# What a rule moves is a part of W and no larger; each factor may round up to twice itself below float16's normal range.
# A Nystroem part may be larger than W: its errors are shown, and `init` warns of them.
_UNBOUNDED = ("nystrom",)
_MOST_MOVED, _ROUNDED_UP = 1.05, 4.0


@dataclass(frozen=True)
class Look:
    """One projection as found: hashes of its stored bytes (None: unreadable), how it recombines, how far rounding alone
    could take it from the source, and how large the adapter's part may be, relative to norm(W)."""

    record: ModuleRecord
    base_sha256: str | None
    source_sha256: str | None
    numbers: Recombination | None
    bounds: Bounds | None
    most_moved: float


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


def look_at(subject: Subject, progress: Progress) -> list[ModuleLook]:
    """Every module in turn; one is in memory at a time."""
    found = []
    for records in subject.modules.values():
        reading = subject.read(records)
        looks = tuple(_look(subject, reading, record) for record in records)
        fused = subject.manifest.base and subject.source is not None and records[0].part is not None
        magnitudes, digest, strays = _wrong_magnitudes(reading), _adapter_digest(reading), _strays(reading)
        beside = fused and _changed_beside(reading)  # last: it blanks the projections
        found.append(ModuleLook(looks, magnitudes, beside, digest, strays))
        for record in records:
            progress.advance(record.module)
    return found


def _look(subject: Subject, reading: Reading, record: ModuleRecord) -> Look:
    W, base, A, B = _projection(reading.source, record), _projection(reading.base, record), reading.A, reading.B
    if A is not None and B is not None:
        A, B = own_factors(A, B, record, subject.manifest.modules)
        A = subject.unpooled(A)
    scaling, numbers, bounds = subject.scaling(record.module), None, None
    if base is not None and A is not None and B is not None and scaling is not None and _fit(record, base, A, B):
        lessened, dtype = base, base.dtype
        if subject.manifest.offset:  # the other adapter takes as much out again; nothing is stored
            lessened, dtype = base.double() - scaling * B.double() @ A.double(), torch.float32
        numbers = recombine(lessened, A, B, scaling, W, record.overlap)
        bounds = rounding_bounds(lessened, A, B, scaling, W, dtype)
    most = math.inf if record.rule in _UNBOUNDED else _MOST_MOVED
    if A is not None and A.dtype == torch.float16:
        most *= _ROUNDED_UP
    return Look(record, _digest(base), _digest(W), numbers, bounds, most)


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
    norms = torch.linalg.vector_norm(stored.double(), dim=0 if part is not None and part.transposed else 1)
    alike = held.shape == norms.shape and torch.allclose(held.double(), norms, rtol=_ROUNDED, atol=_LEAST)
    return "" if alike else record.module


def _changed_beside(reading: Reading) -> bool:
    """Whether the other lines of a fused tensor, such as W^K, are not the source's; without the projections in them."""
    here, there = reading.base, reading.source
    if here is None or there is None or here.shape != there.shape:
        return True
    for record in reading.records:
        blank = torch.zeros(record.shape)
        here, there = scatter(here, record.part, blank), scatter(there, record.part, blank)
    return not torch.equal(here, there.to(here.dtype))


def check_matrices(subject: Subject, found: Sequence[ModuleLook]) -> Iterator[Check]:
    """The factors and the base; with the source at hand that it is the one the folder was made from, and the
    recombination, else that the recorded errors are such as rounding makes."""
    looks = [look for module in found for look in module.projections]
    yield _factor_check(found)
    yield _base_check(subject, looks)
    if subject.source is None:
        if subject.manifest.base:
            yield _record_check(looks)
        return
    foreign = [look.record.tensor for look in looks if look.source_sha256 != look.record.source_sha256]
    if foreign:
        yield Check("source", False, f"{subject.source.location} was changed in {listed(foreign)}")
    else:
        yield _recombination_check(looks)
    if subject.manifest.settings["dora"]:
        yield _magnitude_check(found)


def _factor_check(found: Sequence[ModuleLook]) -> Check:
    wrong = []
    for module in found:
        record = module.projections[0].record
        if module.adapter_sha256 != record.adapter_sha256:
            wrong.append(f"{record.module} {'cannot be read' if module.adapter_sha256 is None else 'was changed'}")
        elif module.strays:
            wrong.append(f"{record.module} changes more than its projections")
    return Check("factors", not wrong, listed(wrong) or f"A and B of {len(found)} modules hash as written")


def _base_check(subject: Subject, looks: Sequence[Look]) -> Check:
    """Every touched matrix is the residual that was written; if not, which mistake it looks like."""
    if not subject.manifest.base and all(look.base_sha256 is None for look in looks):
        return Check("base", True, "the base is left alone; the source is not at hand")
    wrong = [look for look in looks if look.base_sha256 != look.record.base_sha256]
    if not wrong:
        return Check("base", True, f"{len(looks)} matrices hash as written")
    kinds: dict[str, list[str]] = {}
    for look in wrong:
        kinds.setdefault(_diagnose(look), []).append(look.record.tensor)
    return Check("base", False, "; ".join(f"{len(names)} {kind}: {listed(names, 2)}" for kind, names in kinds.items()))


def _diagnose(look: Look) -> str:
    if look.base_sha256 is None or look.numbers is None:
        return "cannot be read"
    if look.base_sha256 == look.record.source_sha256 or abs(look.numbers.share - 1) < NEAR:
        return "of the original, not residualised (the adapter would count twice)"
    if abs(look.numbers.share + 1) < NEAR:
        return "residualised twice"
    return "changed, or of another model"


def _recombination_check(looks: Sequence[Look]) -> Check:
    """norm(W - (W_res + s B A)) / norm(W) must be what the manifest recorded, and no entry may be further from W than
    rounding takes it, whatever was recorded."""
    errors = [(look, look.numbers.error or 0.0, look.bounds) for look in looks if look.numbers and look.bounds]
    wrong = [
        f"{look.record.module}: {error:.2e}, recorded {look.record.reconstruction_error:.2e}{fault}"
        for look, error, bounds in errors
        if (fault := _error_fault(look, error, bounds))
    ]
    if len(errors) < len(looks):
        wrong.append(f"{len(looks) - len(errors)} matrices cannot be recombined")
    largest = max((error for _, error, _ in errors), default=0.0)
    meant = all(look.record.grid_error is not None for look in looks if RULES[look.record.rule].moved)
    remark = ": step 0 is not the original model" if largest > _POOR and not meant else ""
    return Check("recombination", not wrong, listed(wrong) or f"largest error {largest:.2e}, as recorded{remark}")


def _error_fault(look: Look, error: float, bounds: Bounds) -> str:
    """What is wrong with an error that was found, and with its record; "" if nothing."""
    if look.record.grid_error is not None:
        return grid_fault(look.record, error)
    excess = math.inf if bounds.excess is None else bounds.excess
    if not excess <= 1:
        return f", in one entry {excess:.3g} times what rounding can do"
    if not error <= look.record.reconstruction_error * (1 + _SLACK) + bounds.noise:
        return ", more than recorded"
    return _record_fault(look, bounds)


def _record_fault(look: Look, bounds: Bounds) -> str:
    """The limits that are not the manifest's own."""
    if look.record.grid_error is not None:
        return grid_fault(look.record, None)
    recorded = look.record.reconstruction_error
    if not (math.isfinite(recorded) and 0 <= recorded <= bounds.limit * (1 + _SLACK)):
        return f", rounding makes at most {bounds.limit:.2e}"
    if not bounds.moved <= look.most_moved:
        return f", the adapter is {bounds.moved:.3g} times as large as the matrix"
    return ""


def _record_check(looks: Sequence[Look]) -> Check:
    """Without the source: a recorded error above what rounding makes of such a base and adapter is none."""
    faults = [(look.record, _record_fault(look, look.bounds) if look.bounds else ", unreadable") for look in looks]
    wrong = [f"{record.module}: {record.reconstruction_error:.2e}{fault}" for record, fault in faults if fault]
    largest = max((look.record.reconstruction_error for look in looks), default=0.0)
    return Check("recorded errors", not wrong, listed(wrong) or f"at most {largest:.2e}, no more than rounding makes")


def _magnitude_check(found: Sequence[ModuleLook]) -> Check:
    wrong = [module.magnitudes for module in found if module.magnitudes]
    detail = f"of {len(found)} modules the norms of the original's rows"
    return Check("magnitudes", not wrong, f"not the norms of the original's rows: {listed(wrong)}" if wrong else detail)
