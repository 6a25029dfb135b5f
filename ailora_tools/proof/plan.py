"""What init would do with the source and the settings of the manifest, and whether the records say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoint.header import quoted
from ..checkpoint.index import Checkpoint
from ..errors import AiloraError, listed
from ..methods import find_method
from ..output.manifest import Manifest
from ..surgery.describe import planned_extra, planned_record
from ..surgery.operation import Operation, plan_operation
from ..surgery.settings import Settings
from .folder import Check
from .subject import Subject

_NO_SETTINGS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)  # of values of another type


def derive(manifest: Manifest, source: Checkpoint) -> tuple[Operation | None, str]:
    """The operation; None and the reason where the settings are none that init takes."""
    try:
        settings = Settings(**{**manifest.settings, "roles": tuple(manifest.settings["roles"])})
        method, _ = find_method(settings.method, settings.roles)
        return plan_operation(source, settings, method, Path()), ""
    except AiloraError as error:
        return None, error.problem
    except _NO_SETTINGS as error:
        return None, f"settings of the manifest: {error}"


def check_plan(subject: Subject) -> Check:
    """Which tensor belongs to which module, their parts, roles, layers, shapes, ranks and scalings, and whether there
    is a base, all derived anew: none of it is believed from the manifest."""
    if subject.operation is None:
        return Check("plan", False, f"init would refuse: {subject.refusal}")
    try:
        faults = list(_faults(subject, subject.operation))
    except _NO_SETTINGS as error:
        faults = [f"settings of the manifest: {error}"]
    count = len(subject.manifest.modules)
    return Check("plan", not faults, listed(faults) or f"{count} projections, as derived from the source's headers")


def _faults(subject: Subject, operation: Operation) -> Iterator[str]:
    manifest = subject.manifest
    for name, found, expected in (
        ("base", manifest.base, bool(operation.layouts)),
        ("offset", manifest.offset, operation.offset),
    ):
        if found is not expected:
            yield f"{name} is {found}, expected {expected}"
    carriers = operation.plan.carriers
    planned = [planned_record(operation, carrier, target) for carrier in carriers for target in carrier.targets]
    if strangers := sorted({one.module for one in manifest.modules} - {one["module"] for one in planned}):
        yield f"{listed(strangers)} would not be touched"
    if len(planned) != len(manifest.modules):
        yield f"{len(manifest.modules)} projections are recorded, expected {len(planned)}"
        return
    for record, expected_fields in zip(manifest.modules, planned, strict=True):
        yield from _differing(vars(record), expected_fields, "module")
    beside = [planned_extra(extra) for extra in operation.extras]
    if [record.name for record in manifest.extras] != [one["name"] for one in beside]:
        yield f"{len(manifest.extras)} tensors are recorded beside the factors, expected {len(beside)}"
        return
    for extra, expected_fields in zip(manifest.extras, beside, strict=True):
        yield from _differing(vars(extra), expected_fields, "name")


def _differing(record: dict[str, Any], planned: dict[str, Any], key: str) -> Iterator[str]:
    """One sentence for each record with a wrong field: the first of them. `key`: the field that names it."""
    for name, expected in planned.items():
        if record[name] != expected:
            yield f"{planned[key]}: {name} is {quoted(record[name])}, expected {quoted(expected)}"
            return
