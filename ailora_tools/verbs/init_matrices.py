"""What every process of an `init` does: compute one matrix after the other. The first alone keeps the folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.index import read_checkpoint
from ..checkpoint.source import SourceOptions
from ..methods import Method
from ..output.manifest import ModuleRecord, fingerprint, module_record
from ..surgery.operation import Operation, plan_operation
from ..surgery.settings import Settings
from ..targets.projections import Carrier
from ..team.part import Part
from ..team.sharing import Work, serve
from ..team.team import Job
from .processes import Library, Matrix, device_of, kind_of, require_alike, require_same, spending, spool_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..surgery.tensor import Outcome


def computing(
    operation: Operation, device: torch.device, notice: Callable[[str], None], kind: str | None = None
) -> Work[Matrix]:
    """Matrices in, what is written for each out; `kind` is noted in their records."""
    from ..checkpoint.arithmetic import ieee
    from ..checkpoint.stream import stream
    from ..matrices.dequantise import dequantise
    from ..surgery.tensor import operate_on

    files = operation.checkpoint.files

    def operate(matrix: Matrix, stored: Tensor) -> Outcome:
        return operate_on(matrix.carrier, dequantise(stored, matrix.carrier.quantised, files), operation)

    def work(matrices: Iterator[Matrix]) -> Generator[tuple[Matrix, Part]]:
        spent = spending(files.traffic)
        with ieee():
            for matrix, outcome in stream(files, matrices, operate, device, notice):
                yield matrix, _packed(outcome, kind, spent())

    return work


def _packed(outcome: Outcome, kind: str | None, spent: list[int]) -> Part:
    """The residual last: where it cannot travel, the first process forms it from the factors."""
    records = [asdict(replace(record, computed_on=kind)) for record in outcome.records]
    meta = {"records": records, "tensor_sha256": outcome.residual_sha256, "spent": spent}
    residual = [] if outcome.residual is None else [outcome.residual]
    return Part(meta, [*outcome.factors, *residual], spare=len(residual))


def unpacked(
    carrier: Carrier, part: Part, operation: Operation, device: torch.device
) -> tuple[Sequence[ModuleRecord], Sequence[memoryview], memoryview | None, str | None]:
    """Records, factors, the tensor of the base and its SHA-256, as `InitFolder.store` takes them."""
    records = [module_record(record) for record in part.meta["records"]]
    digest, count = part.meta["tensor_sha256"], 3 if operation.settings.dora else 2
    blobs = [memoryview(blob) for blob in part.blobs]
    if digest is None or len(blobs) > count:
        return records, blobs[:count], blobs[count] if digest is not None else None, digest
    from ..checkpoint.stream import load_matrix
    from ..surgery.residual import form_residual
    from ..surgery.tensor import operate_on

    stored = load_matrix(operation.checkpoint.files, carrier.stored).to(device)
    residual = form_residual(carrier, stored, blobs, records, digest, operation)
    if residual is not None:
        return records, blobs, residual, digest
    own = operate_on(carrier, stored, operation)
    return own.records, own.factors, own.residual, own.residual_sha256


def call_for_plan(job: Job, library: Library, operation: Operation) -> None:
    """Let all others plan the same: what they read, what all-linear stands for, and what the class does not build."""
    job.call(
        {
            "sources": library.tell(),
            "shards": fingerprint(operation.checkpoint),
            "folder": str(operation.folder),
            "roles": list(operation.settings.roles),
            "unbuilt": list(operation.settings.unbuilt),
        }
    )


def help_init(
    job: Job, model: str | Path, settings: Settings, row: Method, mixed: bool, source: SourceOptions
) -> Operation:
    """The part of all processes but the first, until it is done; what was planned last."""
    # What trains beside the factors is written by the first process.
    settings = replace(settings, modules_to_save=(), trainable_tokens=None)
    plan = job.expect()
    checkpoint = read_checkpoint(Library(job, plan["sources"]).open(model, **source))
    require_same(job, checkpoint, plan["shards"])

    def planned(plan: dict[str, Any]) -> Operation:
        own = replace(settings, roles=tuple(plan["roles"]), unbuilt=tuple(plan["unbuilt"]))
        return plan_operation(checkpoint, own, row, Path(plan["folder"]))

    operation = planned(plan)
    for told in job.calls():
        if "unbuilt" in told:
            operation = planned(told)
            continue
        device = device_of(settings.device, job)
        kind = require_alike(job, told["kind"], kind_of(device), mixed)
        items = [Matrix(carrier) for carrier in operation.plan.carriers]
        serve(job, "matrices", items, computing(operation, device, lambda text: None, kind), spool_of(told))
    return operation
