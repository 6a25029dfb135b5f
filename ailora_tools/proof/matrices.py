"""Whether the base holds what was written, and whether base and adapter make the source again, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.stream import matrix_bytes
from ..errors import listed
from ..linalg.recombine import NEAR, Recombination, recombine
from ..matrices.gather import gather, scatter
from ..output.manifest import ModuleRecord
from ..output.spans import sha256
from ..progress import Progress
from ..surgery.blocks import own_factors
from .folder import Check
from .subject import Reading, Subject

_SLACK = 1e-3  # float64 here, float32 in `init` where the recorded error was measured
_FLOOR = 1e-9
_ROUNDED = 1e-6  # of magnitudes, stored in float32


@dataclass(frozen=True)
class Look:
    """One projection as found: hashes of its stored bytes (None: unreadable) and how it recombines."""

    record: ModuleRecord
    base_sha256: str | None
    source_sha256: str | None
    numbers: Recombination | None


@dataclass(frozen=True)
class ModuleLook:
    """The projections of one module; what is wrong with its magnitudes, "" if nothing; whether lines of its tensor that
    are no projection differ from the source's."""

    projections: tuple[Look, ...]
    magnitudes: str
    changed_beside: bool


def look_at(subject: Subject, progress: Progress) -> list[ModuleLook]:
    """Every module in turn; one is in memory at a time."""
    found = []
    for records in subject.modules.values():
        reading = subject.read(records)
        looks = tuple(_look(subject, reading, record) for record in records)
        fused = subject.manifest.base and subject.source is not None and records[0].part is not None
        found.append(ModuleLook(looks, _wrong_magnitudes(reading), fused and _changed_beside(reading)))
        for record in records:
            progress.advance(record.module)
    return found


def _look(subject: Subject, reading: Reading, record: ModuleRecord) -> Look:
    W, base, A, B = _projection(reading.source, record), _projection(reading.base, record), reading.A, reading.B
    if A is not None and B is not None:
        A, B = own_factors(A, B, record, subject.manifest.modules)
    numbers = None
    if base is not None and A is not None and B is not None and _fit(record, base, A, B):
        lessened = base.double() - record.scaling * B.double() @ A.double() if subject.manifest.offset else base
        numbers = recombine(lessened, A, B, record.scaling, W, record.overlap)
    return Look(record, _digest(base), _digest(W), numbers)


def _fit(record: ModuleRecord, base: Tensor, A: Tensor, B: Tensor) -> bool:
    rows, columns = record.shape
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


def _wrong_magnitudes(reading: Reading) -> str:
    """DoRA's magnitudes are the norms of the original's rows, so that they change nothing at step 0."""
    record, held, stored = reading.records[0], reading.magnitude, reading.source
    if held is None or stored is None:
        return f"{record.module} cannot be read"
    part = record.part
    norms = torch.linalg.vector_norm(stored.double(), dim=0 if part is not None and part.transposed else 1)
    alike = held.shape == norms.shape and torch.allclose(held.double(), norms, rtol=_ROUNDED)
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
    """The base; with the source at hand that it is the one the folder was made from, and the recombination."""
    looks = [look for module in found for look in module.projections]
    yield _base_check(subject, looks)
    if subject.source is None:
        return
    foreign = [look.record.tensor for look in looks if look.source_sha256 != look.record.source_sha256]
    if foreign:
        yield Check("source", False, f"{subject.source.location} was changed in {listed(foreign)}")
    else:
        yield _recombination_check(looks)
    if subject.manifest.settings["dora"]:
        yield _magnitude_check(found)


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
    """norm(W - (W_res + s B A)) / norm(W) must be what the manifest recorded."""
    errors = [(look, look.numbers.error) for look in looks if look.numbers and look.numbers.error is not None]
    wrong = [
        f"{look.record.module}: {error:.2e}, recorded {look.record.reconstruction_error:.2e}"
        for look, error in errors
        if not error <= look.record.reconstruction_error * (1 + _SLACK) + _FLOOR
    ]
    if len(errors) < len(looks):
        wrong.append(f"{len(looks) - len(errors)} matrices cannot be recombined")
    largest = max((error for _, error in errors), default=0.0)
    return Check("recombination", not wrong, listed(wrong) or f"largest error {largest:.2e}, as recorded")


def _magnitude_check(found: Sequence[ModuleLook]) -> Check:
    wrong = [module.magnitudes for module in found if module.magnitudes]
    detail = f"of {len(found)} modules the norms of the original's rows"
    return Check("magnitudes", not wrong, f"not the norms of the original's rows: {listed(wrong)}" if wrong else detail)
