"""What every process of an `analyze` does: measure one matrix after the other. The first alone keeps the folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.document import AnalysisJob
from ..analysis.tuned import open_tuned
from ..checkpoint.index import read_checkpoint
from ..checkpoint.source import SourceOptions
from ..metrics.heads import read_heads
from ..output.manifest import fingerprint
from ..targets.plan import make_plan
from ..targets.selection import Selection
from ..team.part import Part
from ..team.sharing import Work, serve
from ..team.team import Job
from .memory import at_once, need
from .processes import Library, Matrix, device_of, kind_of, require_alike, require_same, spent, spool_of

if TYPE_CHECKING:
    import torch


def measuring(
    job: AnalysisJob, device: torch.device, notice: Callable[[str], None], memory: int | None, kind: str | None = None
) -> Work[Matrix]:
    """Matrices in, the records of their projections by label out, in `memory` bytes; `kind` is noted in them."""
    from ..analysis.measuring import Measuring
    from ..checkpoint.arithmetic import ieee
    from ..checkpoint.steps import Within
    from ..checkpoint.stream import stream

    files = job.checkpoint.files
    measure = Within(attrgetter("carrier"), Measuring(job))
    noted = {} if kind is None else {"computed_on": kind}
    verb = "analyze --against" if job.tuned else "analyze"

    def work(matrices: Iterator[Matrix]) -> Generator[tuple[Matrix, Part]]:
        count = at_once(need(verb, job.plan.targets), memory, notice)
        with ieee():
            for matrix, records in stream(files, matrices, measure, device, notice, count, in_order=False):
                noted_records = {label: {**record, **noted} for label, record in records.items()}
                yield matrix, Part({"records": noted_records, "spent": spent(files.traffic)})

    return work


def call_for_plan(job: Job, library: Library, decided: AnalysisJob, selection: Selection) -> None:
    """Let all others plan the same: what they read, what all-linear stands for, and what the class does not build."""
    shards, chosen = fingerprint(decided.checkpoint), {"roles": selection.roles, "unbuilt": selection.unbuilt}
    job.call({"sources": library.tell(), "shards": shards, **{key: list(names) for key, names in chosen.items()}})


def help_analyze(
    job: Job, model: str | Path, selection: Selection, against: Sequence[str | Path], settings: dict[str, Any],
    memory: int | None, mixed: bool, source: SourceOptions,
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
        serve(job, "matrices", items, measuring(decided, device, lambda text: None, memory, kind), spool_of(work))
    return decided
