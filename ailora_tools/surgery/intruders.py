"""Fewer intruder dimensions in a change: directions of W + B A that W has nothing like (arXiv 2410.21228).

Of the first singular triplets (s, u, v) of W + B A an intruder is one whose u has no cosine of `cosine` or more with
any left singular vector of W. (1 - keep) s u v^T is taken off the change for each, as `reduce_intruder_dimension` of
PEFT 0.19 does; here B A stays in factors, and only W is ever a whole matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.folder import Adapter
from ..checkpoint.index import Checkpoint, open_checkpoint
from ..checkpoint.tensors import load_matrix
from ..errors import TargetError
from ..linalg.finite import require_finite
from ..linalg.principal import principal
from ..linalg.whole import whole
from ..matrices.dequantise import dequantise
from ..matrices.quantisation import find_quantised
from ..output.manifest import Manifest, ModuleRecord
from .decompose import seeded


@dataclass(frozen=True)
class Reduction:
    """keep: the share of an intruder that stays (PEFT's mitigation_lambda). first: how many triplets are looked at
    (top_k). cosine: below which one is an intruder (threshold_epsilon)."""

    keep: float
    first: int = 10
    cosine: float = 0.5


@dataclass(frozen=True)
class Reduced:
    """B (m, r + k) and A (r + k, n) in float64, k the number of `intruders`."""

    B: Tensor
    A: Tensor
    intruders: int


def reduce_intruders(W: Tensor, B: Tensor, A: Tensor, wanted: Reduction) -> Reduced:
    """The change B A, B (m, r) and A (r, n), of W (m, n), any float dtype, without so much of its intruders."""
    wide = torch.float64 if W.dtype == torch.float64 else torch.float32
    after = W.to(wide) + (B @ A).to(wide)
    count = min(wanted.first, *W.shape)
    found = principal(after, count, seeded("intruders"))
    del after
    nearest = (whole(W).U.T @ found.U.float()).abs().amax(0)
    new = (nearest < wanted.cosine).nonzero().flatten()
    sides = found.U[:, new] * (wanted.keep - 1) * found.S[new], found.Vh[new]
    return Reduced(torch.cat([B, sides[0]], 1), torch.cat([A, sides[1]]), len(new))


@dataclass(frozen=True)
class Originals:
    """The matrices of the model that a start was made from, by module of the start: what is on this machine of it."""

    checkpoint: Checkpoint
    start: Adapter
    records: Mapping[str, ModuleRecord]
    residual: bool

    @classmethod
    def of(cls, manifest: Manifest, folder: Path, start: Adapter) -> Originals:
        """TargetError where neither a residual base nor the original is here: a manifest may be a stranger's, and
        nothing on a network is asked because it says so."""
        location = str(manifest.source["location"])
        if not manifest.base and (manifest.source["revision"] is not None or not Path(location).is_absolute()):
            raise TargetError(
                f"{folder}: its base is {location}, which is not on this machine: intruders are told by its matrices.",
                "Leave --reduce-intruders out, or run `init` on a copy of the model that is here.",
            )
        checkpoint = open_checkpoint(folder if manifest.base else location)
        return cls(checkpoint, start, {record.module: record for record in manifest.modules}, manifest.base)

    def weight(self, module: str) -> Tensor:
        """W (out, in) as the original has it; of a residual base with what `init` took out of it, in float64."""
        record = self.records[module]
        stored = self.checkpoint.tensors.get(record.tensor)
        if stored is None:
            raise TargetError(f"{self.checkpoint.location} has no {record.tensor}.", "Was the base changed since?")
        files = self.checkpoint.files
        W = dequantise(load_matrix(files, stored), find_quantised(self.checkpoint, record.tensor), files)
        require_finite(W, record.tensor)
        W = W.T if record.part is not None and record.part.transposed else W
        if not self.residual:
            return W
        factors = self.start.modules[module]
        A, B = (self.start.load(side).double() for side in (factors.A, factors.B))
        return (W.double() + factors.scaling * (B @ A)).to(torch.float64 if W.dtype == torch.float64 else torch.float32)
