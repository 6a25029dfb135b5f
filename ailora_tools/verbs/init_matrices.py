"""What every process of an `init` does: compute one matrix after the other. The first alone keeps the folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from operator import attrgetter
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
from .memory import at_once, need
from .processes import Library, Matrix, device_of, kind_of, require_alike, require_same, spent, spool_of
from .shards import helping_with_shards

if TYPE_CHECKING:
    import torch

    from ..surgery.tensor import Outcome


def computing(
    operation: Operation, device: torch.device, notice: Callable[[str], None], memory: int | None,
    kind: str | None = None,
) -> Work[Matrix]:  # fmt: skip
    """Matrices in, what is written for each out, in `memory` bytes; `kind` is noted in their records."""
    from ..checkpoint.arithmetic import ieee
    from ..checkpoint.steps import Within
    from ..checkpoint.stream import stream
    from ..surgery.tensor import Surgery

    files = operation.checkpoint.files
    operate = Within(attrgetter("carrier"), Surgery(operation))
    verb = "init" if operation.layouts else "init --no-base"

    def work(matrices: Iterator[Matrix]) -> Generator[tuple[Matrix, Part]]:
        count = at_once(need(verb, operation.plan.targets, operation.method.rules), memory, notice)
        with ieee():
            for matrix, outcome in stream(files, matrices, operate, device, notice, count, in_order=False):
                yield matrix, _packed(outcome, kind, spent(files.traffic))

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
    from ..surgery.tensor import Surgery

    stored = load_matrix(operation.checkpoint.files, carrier.stored).to(device)
    residual = form_residual(carrier, stored, blobs, records, digest, operation)
    if residual is not None:
        return records, blobs, residual, digest
    own = Surgery(operation)(carrier, stored)
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
    job: Job, model: str | Path, settings: Settings, row: Method, memory: int | None, mixed: bool,
    source: SourceOptions,
) -> Operation:  # fmt: skip
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
        computed, spool = computing(operation, device, lambda text: None, memory, kind), spool_of(told)
        with helping_with_shards(job, checkpoint.files, operation.layouts, spool, hashed=True) as watched:
            serve(job, "matrices", items, watched(computed), spool)
    return operation
