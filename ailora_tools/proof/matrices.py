"""Whether the base holds what was written, and whether base and adapter make the source again, matrix by matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..errors import listed
from ..linalg.bounds import Comparison
from ..linalg.recombine import NEAR
from ..methods import ERROR_TAKEN, RULES
from .folder import Check
from .grid import grid_fault
from .look import Look, ModuleLook
from .subject import Subject

# A recorded error may differ from the one found here by the order of sums, and by the subtraction's own rounding, which
# `compare` gives as `noise`: 4 + r times eps(float32) of what was subtracted for a base in 16 bits.
_SLACK = 1e-3


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
    errors = [(look, look.numbers.error or 0.0, look.numbers) for look in looks if look.numbers]
    wrong = [
        f"{look.record.module}: {error:.2e}, recorded {look.record.reconstruction_error:.2e}{fault}"
        for look, error, numbers in errors
        if (fault := _error_fault(look, error, numbers))
    ]
    if len(errors) < len(looks):
        wrong.append(f"{len(looks) - len(errors)} matrices cannot be recombined")
    largest = max((error for _, error, _ in errors), default=0.0)
    meant = all(look.record.grid_error is not None for look in looks if RULES[look.record.rule].moved)
    remark = ": step 0 is not the original model" if largest > ERROR_TAKEN and not meant else ""
    return Check("recombination", not wrong, listed(wrong) or f"largest error {largest:.2e}, as recorded{remark}")


def _error_fault(look: Look, error: float, found: Comparison) -> str:
    """What is wrong with an error that was found, and with its record; "" if nothing."""
    if look.record.grid_error is not None:
        return grid_fault(look.record, error)
    excess = math.inf if found.excess is None else found.excess
    if not excess <= 1:
        return f", in one entry {excess:.3g} times what rounding can do"
    if not error <= look.record.reconstruction_error * (1 + _SLACK) + found.noise:
        return ", more than recorded"
    return _record_fault(look, found)


def _record_fault(look: Look, found: Comparison) -> str:
    """The limits that are not the manifest's own."""
    if look.record.grid_error is not None:
        return grid_fault(look.record, None)
    recorded = look.record.reconstruction_error
    if not (math.isfinite(recorded) and 0 <= recorded <= found.limit * (1 + _SLACK)):
        return f", rounding makes at most {found.limit:.2e}"
    if not found.moved <= look.most_moved:
        return f", the adapter is {found.moved:.3g} times as large as the matrix"
    return ""


def _record_check(looks: Sequence[Look]) -> Check:
    """Without the source: a recorded error above what rounding makes of such a base and adapter is none."""
    faults = [(look.record, _record_fault(look, look.numbers) if look.numbers else ", unreadable") for look in looks]
    wrong = [f"{record.module}: {record.reconstruction_error:.2e}{fault}" for record, fault in faults if fault]
    largest = max((look.record.reconstruction_error for look in looks), default=0.0)
    return Check("recorded errors", not wrong, listed(wrong) or f"at most {largest:.2e}, no more than rounding makes")


def _magnitude_check(found: Sequence[ModuleLook]) -> Check:
    wrong = [module.magnitudes for module in found if module.magnitudes]
    detail = f"of {len(found)} modules the norms of the original's rows"
    return Check("magnitudes", not wrong, f"not the norms of the original's rows: {listed(wrong)}" if wrong else detail)
