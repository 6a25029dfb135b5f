"""What verbs over several processes have in common: the matrices as items of a list, the files that all of them read,
and whether their machines are alike enough for one result."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..checkpoint.files import Files
from ..checkpoint.handed import handed, recorded, told
from ..checkpoint.header import StoredTensor
from ..checkpoint.index import Checkpoint
from ..checkpoint.source import SourceOptions, open_files
from ..checkpoint.transfer import Traffic
from ..errors import TeamError
from ..output.claim import claimed
from ..output.manifest import fingerprint
from ..output.work import WorkFolder, find, recovered
from ..targets.projections import Carrier
from ..team.part import Part
from ..team.team import Job
from ..version import __version__

if TYPE_CHECKING:
    import torch

_SPOOL = "spool"  # in the work folder: a file for each matrix that another process has handed in


@dataclass(frozen=True)
class Matrix:
    """One stored tensor as an item of a list. cost: of its decomposition, min(m, n)^2 max(m, n) as measured."""

    carrier: Carrier

    @property
    def stored(self) -> StoredTensor:
        return self.carrier.stored

    @property
    def name(self) -> str:
        return f"{self.carrier.module} {self.stored.name}"

    @property
    def cost(self) -> float:
        return float(sum(min(target.shape) ** 2 * max(target.shape) for target in self.carrier.targets))

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes


class Library:
    """The files that a job reads: opened by the first process, and by the others from what that one tells."""

    def __init__(self, job: Job, heard: list[Any] | None = None) -> None:
        self._record = job.leads and not job.alone
        self._heard = list(heard or ())
        self._opened: list[Files] = []

    def open(self, model: str | Path, **source: Unpack[SourceOptions]) -> Files:
        """As `open_files`; in all processes of a job in the same order."""
        known = self._heard.pop(0) if self._heard else None
        files = handed(known) if known is not None else open_files(model, **source)
        self._opened.append(recorded(files) if self._record else files)
        return self._opened[-1]

    def tell(self) -> list[Any]:
        """What others need to open the same."""
        return [told(files) for files in self._opened]


def device_of(name: str, job: Job, notice: Callable[[str], None] = lambda text: None) -> torch.device:
    """As `find_device`; `auto` gives each process of a machine the next GPU, or its share of the cores."""
    import torch

    from ..checkpoint.stream import find_device

    place = job.place
    if job.alone or name != "auto":
        return find_device(name, notice)
    if torch.cuda.is_available():
        return find_device(f"cuda:{place.local % torch.cuda.device_count()}")
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun and accelerate set OMP_NUM_THREADS, srun does not
        torch.set_num_threads(max(1, torch.get_num_threads() // place.beside))
    return find_device("cpu")


def kind_of(device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on besides its input."""
    from ..checkpoint.stream import computing

    return {"ailora_tools": __version__, "cpu": _cpu(), **computing(device)}


def agree_on_kind(work: WorkFolder, device: torch.device, mixed: bool) -> dict[str, Any]:
    """What this process is; OutputError where an interrupted run was something else, unless that is allowed."""
    kind = kind_of(device)
    if not mixed:
        work.agree("compute", kind)
    return kind


def call_for_work(job: Job, kind: dict[str, Any], work: WorkFolder, shared_folder: bool) -> Path | None:
    """Let all others work, on machines of this `kind`; where they hand in."""
    spool = work.root / _SPOOL if shared_folder else None
    job.call({"kind": kind, "spool": None if spool is None else str(spool.resolve())})
    return spool


def spool_of(told: dict[str, Any]) -> Path | None:
    """Where results are handed in, out of a call for work."""
    return None if told["spool"] is None else Path(told["spool"])


def spent(traffic: Traffic | None) -> list[int]:
    """Bytes, requests and retries over the network since the last call: they travel with each part."""
    return [0, 0, 0] if traffic is None else traffic.take()


def credit(traffic: Traffic | None, part: Part) -> None:
    """Count what another process read for a part, so that the job tells of all of it."""
    if traffic is not None and part.rank:
        traffic.count(*part.meta["spent"])


def publishing(job: Job, final: Path, unchanged: Callable[[], None]) -> Callable[[], None]:
    """`unchanged`, and then a note for the next attempt, that the output is about to take its place."""

    def note() -> None:
        unchanged()
        job.keep("publishing", str(final))

    return note


def is_published(job: Job, final: Path) -> bool:
    """Whether the processes were started anew after the last step of the work: then what a death left beside the output
    goes, and nothing is left to do."""
    noted = job.restarted and job.kept("publishing") == str(final)
    if not noted or not final.exists() or any(work.tree.exists() for work in find(final)):
        return False
    with claimed(final, "restart"):
        recovered(final)
    return True


def processes(job: Job) -> dict[str, str]:
    """How many there were, for the facts about a result."""
    return {} if job.alone else {"processes": str(job.place.size)}


def require_alike(job: Job, first: dict[str, Any], own: dict[str, Any], mixed: bool) -> str | None:
    """What is to be recorded with the matrices of this process where it is not of the `first` one's kind; TeamError
    unless that is allowed."""
    unlike = {key: own.get(key) for key in first if own.get(key) != first[key]}
    if unlike and not mixed:
        found = ", ".join(f"{key} {value!r} (the first process: {first[key]!r})" for key, value in unlike.items())
        raise TeamError(
            f"{job.me} would not compute the same bytes: {found}.",
            "Use machines of one kind, or allow it with --mixed, which names it in the record of each matrix.",
        )
    return ", ".join(f"{key}: {value}" for key, value in unlike.items()) or None


def require_same(job: Job, checkpoint: Checkpoint, first: dict[str, Any]) -> None:
    """TeamError where this process reads another model than the first one, by size and header of every shard."""
    if fingerprint(checkpoint) != first:
        raise TeamError(
            f"{job.me}: {checkpoint.location} is not what it is in the first process.",
            "Give all processes the same model.",
        )


@cache
def _cpu() -> str:
    """The processor, on whose instructions the order of sums depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
