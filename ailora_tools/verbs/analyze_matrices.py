"""What every process of an `analyze` does: measure one matrix after the other. The first alone keeps the folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.document import AnalysisJob
from ..analysis.tuned import open_tuned
from ..checkpoint.index import read_checkpoint
from ..checkpoint.source import SourceOptions
from ..errors import NumericalError
from ..metrics.heads import read_heads
from ..output.manifest import fingerprint
from ..targets.plan import make_plan
from ..targets.projections import Target
from ..targets.selection import Selection
from ..team.part import Part
from ..team.sharing import Work, serve
from ..team.team import Job
from .processes import Library, Matrix, device_of, kind_of, require_alike, require_same, spending, spool_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LARGE_SIDE = 3072  # above, two Gram matrices at a time take more memory than the tenth of time that they save


def measuring(
    job: AnalysisJob, device: torch.device, notice: Callable[[str], None], kind: str | None = None
) -> Work[Matrix]:
    """Matrices in, the records of their projections by label out; `kind` is noted in them."""
    from ..checkpoint.arithmetic import ieee
    from ..checkpoint.stream import stream
    from ..matrices.dequantise import dequantise
    from ..matrices.gather import gather

    files = job.checkpoint.files
    noted = {} if kind is None else {"computed_on": kind}

    def work_on(matrix: Matrix, stored: Tensor) -> dict[str, dict[str, Any]]:
        W = dequantise(stored, matrix.carrier.quantised, files)
        return {target.label: _measured(job, target, gather(W, target.part)) for target in matrix.carrier.targets}

    def work(matrices: Iterator[Matrix]) -> Generator[tuple[Matrix, Part]]:
        spent = spending(files.traffic)
        at_once = 2 if max(min(target.shape) for target in job.plan.targets) <= _LARGE_SIDE else 1
        with ieee():
            for matrix, records in stream(files, matrices, work_on, device, notice, at_once):
                noted_records = {label: {**record, **noted} for label, record in records.items()}
                yield matrix, Part({"records": noted_records, "spent": spent()})

    return work


def _measured(job: AnalysisJob, target: Target, W: Tensor) -> dict[str, Any]:
    """One projection; the reason instead where it cannot be measured."""
    from ..analysis.measure import measure

    changes = [lambda W, other=other: other.difference(target, W) for other in job.tuned]
    count = job.heads.count(target.role, target.shape) if job.heads else None
    try:
        return measure(W, target.tensor, target.role, count, job.rank, changes)
    except NumericalError as error:
        return {"skipped": error.problem}


def call_for_plan(job: Job, library: Library, decided: AnalysisJob, selection: Selection) -> None:
    """Let all others plan the same: what they read, what all-linear stands for, and what the class does not build."""
    shards, chosen = fingerprint(decided.checkpoint), {"roles": selection.roles, "unbuilt": selection.unbuilt}
    job.call({"sources": library.tell(), "shards": shards, **{key: list(names) for key, names in chosen.items()}})


def help_analyze(
    job: Job, model: str | Path, selection: Selection, against: Sequence[str | Path], settings: dict[str, Any],
    mixed: bool, source: SourceOptions,
) -> AnalysisJob:  # fmt: skip
    """The part of all processes but the first, until it is done; `settings` as the document has them."""
    told = job.expect()
    library = Library(job, told["sources"])
    checkpoint = read_checkpoint(library.open(model, **source))
    require_same(job, checkpoint, told["shards"])
    selection = replace(selection, roles=tuple(told["roles"]), unbuilt=tuple(told["unbuilt"]))
    plan = make_plan(checkpoint, selection, quantised=True)
    tuned = tuple(open_tuned(library.open(other), checkpoint, plan, selection) for other in against)
    heads = read_heads(checkpoint.config) if settings["heads"] else None
    decided = AnalysisJob(checkpoint, plan, tuned, heads, settings["rank"], settings)
    for work in job.calls():
        device = device_of(settings["device"], job)
        kind = require_alike(job, work["kind"], kind_of(device), mixed)
        items = [Matrix(carrier) for carrier in plan.carriers]
        serve(job, "matrices", items, measuring(decided, device, lambda text: None, kind), spool_of(work))
    return decided
