"""`analyze`: the spectra of W^Q and W^V layer by layer, what fine-tuning changed, and a report of both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from ..analysis.allocation import UNPROVEN, parse_budget, suggest_ranks
from ..analysis.chosen import parse_share
from ..analysis.chosen import suggest_targets as chosen_targets
from ..analysis.document import AnalysisJob, write_up
from ..analysis.tuned import Tuned, TunedAdapter, open_tuned
from ..checkpoint.index import Checkpoint, read_checkpoint
from ..checkpoint.machine import parse_size
from ..checkpoint.source import SourceOptions, user_path
from ..checkpoint.transfer import Traffic
from ..display.shown import shows_progress
from ..errors import OptionError, listed
from ..metrics.heads import Heads, read_heads
from ..output.analysis import dump, metric_rows, metrics_csv, read_analysis
from ..output.atomic import Output, building
from ..output.names import ANALYSIS, METRICS, RANKS, REPORT
from ..output.place import output_folder
from ..output.sources import Sources
from ..output.spans import write_json, write_text
from ..output.work import WorkFolder
from ..progress import Progress, heard
from ..report.packed import packing_plotly
from ..report.page import render
from ..report.pieces import digest, figure, figure_names
from ..targets.as_built import plan_as_built
from ..targets.projections import Plan
from ..targets.selection import Selection
from ..team.sharing import share
from ..team.team import Job, find_team
from .analyze_matrices import call_for_plan, help_analyze, measuring
from .announce import announce
from .processes import (
    Library,
    Matrix,
    agree_on_kind,
    call_for_work,
    credit,
    device_of,
    is_published,
    processes,
    publishing,
)
from .result import Result
from .right_base import about_base


@dataclass(frozen=True, repr=False)
class Analysis(Result):
    """The document that analysis.json holds, and the folder it was written to."""

    document: dict[str, Any]
    folder: Path
    traffic: Traffic | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Analysis:
        """One that was written before. CheckpointError if the folder does not hold an analysis of this version."""
        path = user_path(folder, "ANALYSIS")
        return cls(read_analysis(path), path if path.is_dir() else path.parent)

    @property
    def report(self) -> Path:
        return self.folder / REPORT

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Matrices that could not be analysed, with the reason."""
        return list(self.document["skipped"])

    def told(self) -> str:
        """Of which model, and where the report lies."""
        names = [self.document["model"]["name"], *(other["name"] for other in self.document["against"])]
        counts = f"{len(self.document['matrices'])} matrices, {len(self.document['findings'])} findings"
        return f"of {' against '.join(names)}: {counts}, {self.report}"

    def rows(self) -> list[dict[str, Any]]:
        """One record a matrix and fine-tune, as in metrics.csv."""
        return metric_rows(self.document)

    @property
    def figures(self) -> list[str]:
        """Names of the figures of the report, for `figure`."""
        return figure_names(self.document)

    def figure(self, name: str, metric: str | None = None) -> Any:
        """A figure of the report as a plotly.graph_objects.Figure, such as "spectra-q"; of a map ("map-weights")
        that of `metric`, a column of metrics.csv. OptionError for names that are not in `figures`."""
        return figure(self.document, name, metric)

    def _repr_html_(self) -> str:
        return digest(self.document, str(self.report))

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: the document, where it lies, and what went over the network."""
        traffic = self.traffic.to_json() if self.traffic else None
        return {"folder": str(self.folder), "traffic": traffic, **self.document}


@shows_progress
def analyze(
    model: str | Path,
    *,
    against: Sequence[str | Path] = (),
    output: str | Path | None = None,
    roles: Sequence[str] = ("q", "v"),
    layers: str | None = None,
    rank: int = 8,
    heads: bool = False,
    suggest_ranks: str | int | None = None,
    suggest_targets: str | float | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    q_tensor: str | None = None,
    v_tensor: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    resume: bool = False,
    mixed: bool = False,
    shared_folder: bool = True,
    progress: Progress | bool | None = None,
    **source: Unpack[SourceOptions],
) -> Analysis:
    """Measure every W^Q and W^V of `model` and write report.html, analysis.json and metrics.csv.

    `model` is a folder, one .safetensors file, or a Hub id with options `source`; `against` are fine-tuned checkpoints
    of the same architecture or PEFT LoRA folders for it, here or on the Hub. `output` defaults to `reports/<name>`.
    `rank` is that of the subspaces which are compared and of the sentences about a rank. `heads` adds the per-head
    view. `memory` is how much to use at most ("8GB"), which decides how many matrices are worked on at a time.
    `suggest_ranks` is an average rank (8) or a number of parameters ("2M"), and adds ranks.json for `init`; without
    `against` it goes by the spectrum, of which a notice says that it has not been shown to predict the rank.
    `suggest_targets` is a share of the modules (0.2) or a number of them (24), and adds `targets` to the document:
    those with the smallest condition numbers, or, with `against`, those that changed most.

    Under torchrun all processes call this, the first one alone writes, and the others get an empty document; `mixed`
    and `shared_folder` as for `initialize`.

    A matrix with NaN or infinity is left out and named in `skipped`; the rest is analysed. Raises CheckpointError,
    TargetError, OptionError or OutputError; NumericalError if no matrix could be analysed.

    >>> found = analyze("model", rank=2, output="report")
    >>> found.report.name, len(found.document["matrices"])
    ('report.html', 4)
    >>> [row["layer"] for row in found.rows() if row["role"] == "q"]
    [0, 1]
    >>> figure = found.figure("spectra-q")  # a plotly.graph_objects.Figure
    """
    progress = heard(progress)
    limit = None if memory is None else parse_size(memory)
    started = time.monotonic()
    selection = Selection(tuple(roles), layers, q_tensor, v_tensor)
    asked = {name: value for name, value in asdict(selection).items() if name != "unbuilt"}  # of that the notices tell
    settings = {**asked, "roles": list(roles), "rank": rank, "heads": heads, "device": device}
    with find_team().job("analyze") as job:
        if not job.leads:
            decided = help_analyze(job, model, selection, against, settings, limit, mixed, source)
            return Analysis({}, Path(), decided.checkpoint.files.traffic)
        library = Library(job)
        checkpoint = read_checkpoint(library.open(model, **source))
        plan, selection = plan_as_built(checkpoint, selection)
        tuned = tuple(open_tuned(library.open(other), checkpoint, plan, selection) for other in against)
        settings["roles"] = list(selection.roles)  # what all-linear stands for
        decided = AnalysisJob(checkpoint, plan, tuned, _heads(checkpoint, heads, progress), rank, settings)
        _require_rank(plan, rank)
        budget = None if suggest_ranks is None else parse_budget(suggest_ranks, plan)
        count = None if suggest_targets is None else parse_share(suggest_targets, plan)
        inputs = [checkpoint.origin, *(other.origin for other in tuned)]
        folder = output_folder(output, Path("reports", checkpoint.origin.name), inputs, progress)
        notices = [*plan.notices, *(text for other in tuned for text in (*other.notices, *_about(checkpoint, other)))]
        if budget is not None and not tuned:
            notices.append(f"ranks.json: {UNPROVEN}")
        for text in notices:
            progress.notice(text)
        announce(checkpoint.files, plan.reads, checkpoint.nbytes, progress)
        call_for_plan(job, library, decided, selection)
        if is_published(job, folder):
            return Analysis(read_analysis(folder), folder, checkpoint.files.traffic)
        sources = Sources((checkpoint.files, checkpoint.headers), *(other.reads for other in tuned))
        out = Output(
            folder, "analyze", {**decided.to_json(), "files": sources.to_json()}, overwrite=overwrite,
            resume=resume or job.restarted, force=force,
        )  # fmt: skip
        with packing_plotly(), building(out, publishing(job, folder, sources.require_unchanged)) as work:
            rows = _measure(job, decided, work, progress, limit, mixed, shared_folder)
            document = write_up(decided, rows, notices, time.monotonic() - started, processes(job))
            _write(work.tree, document, budget, count)
    return Analysis(document, folder, checkpoint.files.traffic)


def _measure(
    job: Job,
    decided: AnalysisJob,
    work: WorkFolder,
    progress: Progress,
    memory: int | None,
    mixed: bool,
    shared_folder: bool,
) -> dict[str, Any]:
    """Label -> record, those of an interrupted run included; every finished matrix is kept at once."""
    rows = {label: record for records in work.finished("records") for label, record in records.items()}
    progress.start("Analysing", len(decided.plan.targets), len(rows))
    waiting = [
        carrier for carrier in decided.plan.carriers if not {target.label for target in carrier.targets} <= rows.keys()
    ]
    device = device_of(decided.settings["device"], job, progress.notice)
    spool = call_for_work(job, agree_on_kind(work, device, mixed), work, shared_folder)
    measured = measuring(decided, device, progress.notice, memory)
    for matrix, part in share(job, "matrices", [Matrix(carrier) for carrier in waiting], measured, spool, progress):
        records = part.meta["records"]
        credit(decided.checkpoint.files.traffic, part)
        rows.update(records)
        work.record({"records": records})
        for at, label in enumerate(records):
            progress.advance(label, 0 if at else matrix.nbytes)
    return rows


def _write(tree: Path, document: dict[str, Any], budget: int | None, count: int | None) -> None:
    if count is not None:
        document["targets"] = chosen_targets(document, count)
    if budget is not None:
        document["ranks"] = suggest_ranks(document, budget)
        write_json(tree / RANKS, document["ranks"])
    write_text(tree / ANALYSIS, dump(document))
    write_text(tree / METRICS, metrics_csv(document))
    write_text(tree / REPORT, render(document))


def _about(checkpoint: Checkpoint, tuned: Tuned) -> list[str]:
    """Whether a fine-tune has more in it than training."""
    return about_base(checkpoint, tuned.adapter) if isinstance(tuned, TunedAdapter) else []


def _heads(checkpoint: Checkpoint, wanted: bool, progress: Progress) -> Heads | None:
    found = read_heads(checkpoint.config) if wanted else None
    if wanted and found is None:
        progress.notice("config.json does not say how many heads there are: no per-head view")
    return found


def _require_rank(plan: Plan, rank: int) -> None:
    small = [target.tensor for target in plan.targets if not 1 <= rank <= min(target.shape)]
    if small:
        raise OptionError(
            f"rank {rank} does not fit {listed(small)}: 1 to min(m, n) are possible.", "Choose another --rank."
        )
