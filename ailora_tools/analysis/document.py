"""From measured matrices to the document that analysis.json holds."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ..checkpoint.index import Checkpoint
from ..errors import NumericalError
from ..methods import role_order
from ..metrics.heads import Heads
from ..output.analysis import ANALYSIS_FORMAT, ANALYSIS_VERSION
from ..output.manifest import fingerprint
from ..report.findings import find
from ..report.rows import Row, copies
from ..targets.projections import Plan, Target
from ..version import __version__
from .tuned import Tuned


@dataclass(frozen=True)
class AnalysisJob:
    """Everything that is decided before the first weight is read."""

    checkpoint: Checkpoint
    plan: Plan
    tuned: tuple[Tuned, ...]
    heads: Heads | None
    rank: int
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What a resumed run must agree on."""
        origins = [self.checkpoint.origin, *(tuned.origin for tuned in self.tuned)]
        return {
            "version": __version__,
            "sources": [origin.to_json() for origin in origins],
            "shards": fingerprint(self.checkpoint),
            **self.settings,
        }


def write_up(
    job: AnalysisJob, rows: dict[str, Any], notices: list[str], seconds: float, ran_on: Mapping[str, str]
) -> dict[str, Any]:
    """Matrices in natural order, and what was found in them. ran_on: facts about the run beside the versions."""
    ordered = sorted(job.plan.targets, key=lambda target: (target.stack, target.layer, role_order(target.role)))
    whole = [target for target in ordered if "skipped" not in rows[target.label]]
    matrices = [{**_place(target), "copy_of": None, **rows[target.label]} for target in whole]
    copied = copies([Row.read(matrix) for matrix in matrices])
    matrices = [{**matrix, "copy_of": copied.get(matrix["label"])} for matrix in matrices]
    skipped = [
        {**_place(target), "reason": rows[target.label]["skipped"]}
        for target in ordered
        if "skipped" in rows[target.label]
    ]
    if not matrices:
        raise NumericalError(
            f"None of the {len(skipped)} matrices could be analysed: {skipped[0]['reason']}", "Check the source."
        )
    tool = {"ailora_tools": __version__, "torch": version("torch"), "python": platform.python_version()}
    document: dict[str, Any] = {
        "format": ANALYSIS_FORMAT,
        "version": ANALYSIS_VERSION,
        "tool": {**tool, **ran_on},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 2),
        "model": {
            "name": job.checkpoint.origin.name,
            "location": job.checkpoint.location,
            "revision": job.checkpoint.origin.revision,
            "model_type": job.plan.model_type,
            "family": job.plan.family,
            "bytes_total": job.checkpoint.nbytes,
            "bytes_read": job.plan.read_bytes,
            "heads": {"query": job.heads.query, "key_value": job.heads.key_value} if job.heads else None,
            "shards": fingerprint(job.checkpoint),
        },
        "against": [
            {
                "name": other.origin.name,
                "location": other.origin.text,
                "revision": other.origin.revision,
                "kind": other.kind,
                "bytes_read": other.read_bytes,
            }
            for other in job.tuned
        ],
        "settings": job.settings,
        "notices": notices,
        "skipped": skipped,
        "findings": [],
        "matrices": matrices,
    }  # fmt: skip
    return {**document, "findings": find(document)}


def _place(target: Target) -> dict[str, Any]:
    return {
        "label": target.label,
        "role": target.role,
        "layer": target.layer,
        "stack": target.stack,
        "tensor": target.tensor,
        "module": target.module,
        "shape": list(target.shape),
        "dtype": target.stored_as,
    }
