"""`inspect`: what is in a checkpoint and what the surgery would touch, from the headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from ..checkpoint.index import Checkpoint, open_checkpoint
from ..checkpoint.source import SourceOptions
from ..targets.as_built import plan_as_built
from ..targets.projections import Plan, Target
from ..targets.selection import Selection
from .result import Result


@dataclass(frozen=True, repr=False)
class Inspection(Result):
    """A checkpoint and the plan for it; `working_memory` is in bytes, on top of Python and torch themselves."""

    _columns = ("role", "layer", "tensor", "shape", "dtype")

    checkpoint: Checkpoint
    plan: Plan

    @property
    def working_memory(self) -> int:
        """Two workers, each with W, a float64 copy and a float64 Gram of the smaller side, and one read ahead."""
        elements = sorted((target.shape[0] * target.shape[1] for target in self.plan.targets), reverse=True)
        smaller = max(min(target.shape) for target in self.plan.targets)
        return sum(24 * count for count in elements[:2]) + 2 * 16 * smaller**2 + 4 * elements[0]

    def told(self) -> str:
        """Of which model, and how many projections it has."""
        return f"of {self.checkpoint.location}: {self.plan.family}, {len(self.plan.targets)} projections"

    def rows(self) -> list[dict[str, Any]]:
        """One record a projection."""
        return [_row(target) for target in self.plan.targets]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        plan, traffic = self.plan, self.checkpoint.files.traffic
        return {
            "model": self.checkpoint.location,
            "revision": self.checkpoint.origin.revision,
            "model_type": plan.model_type,
            "family": plan.family,
            "shards": {name: header.file_size for name, header in self.checkpoint.headers.items()},
            "bytes_total": self.checkpoint.nbytes,
            "bytes_to_read": plan.read_bytes,
            "working_memory": self.working_memory,
            "targets": self.rows(),
            "notices": list(plan.notices),
            "traffic": traffic.to_json() if traffic else None,
        }


def _row(target: Target) -> dict[str, Any]:
    return {
        "role": target.role,
        "layer": target.layer,
        "stack": target.stack,
        "tensor": target.tensor,
        "module": target.module,
        "file": target.stored.file,
        "dtype": target.stored_as,
        "shape": list(target.shape),
        "start": target.stored.start,
        "stop": target.stored.stop,
        "stored_shape": list(target.stored.shape),
        "lines": [list(run) for run in target.part.runs] if target.part else None,
        "transposed": bool(target.part and target.part.transposed),
    }


def inspect_checkpoint(
    model: str | Path,
    *,
    roles: Sequence[str] = ("q", "v"),
    layers: str | None = None,
    q_tensor: str | None = None,
    v_tensor: str | None = None,
    **source: Unpack[SourceOptions],
) -> Inspection:
    """Find W^Q and W^V of `model` (a folder, one .safetensors file or a Hub id) without reading any weight.

    Raises CheckpointError for damaged files and TargetError where the projections cannot be told.

    >>> found = inspect_checkpoint("model")
    >>> [target.label for target in found.plan.targets]
    ['q 0', 'v 0', 'q 1', 'v 1']
    """
    checkpoint = open_checkpoint(model, **source)
    selection = Selection(tuple(roles), layers, q_tensor, v_tensor)
    plan, _ = plan_as_built(checkpoint, selection)
    return Inspection(checkpoint, plan)
