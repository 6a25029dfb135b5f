"""The tensor of the base formed again from factors that another process computed and could not send it with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checkpoint.arithmetic import ieee
from ..checkpoint.stream import DTYPES, matrix_bytes
from ..matrices.gather import gather, scatter
from ..methods import RULES
from ..output.manifest import ModuleRecord
from ..output.spans import sha256
from ..targets.projections import Carrier
from .blocks import own_factors
from .decompose import subtract
from .operation import Operation


def form_residual(
    carrier: Carrier, stored: Tensor, factors: Sequence[memoryview], records: Sequence[ModuleRecord], digest: str,
    operation: Operation,
) -> memoryview | None:  # fmt: skip
    """Bytes of the carrier's tensor without what A (r, in) and B (out, r) hold; `stored` is the source's, on the device
    of the work. None where they are not those of SHA-256 `digest`, because that device sums in another order."""
    A, B = (_factor(data, operation, stored.device) for data in factors[:2])
    outputs, inputs = carrier.sides
    A, B = A.view(-1, inputs), B.view(outputs, -1)
    base = stored.cpu().to(DTYPES[operation.base_dtype(carrier)], copy=True) if carrier.fused else stored
    for target, record in zip(carrier.targets, records, strict=True):
        if RULES[record.rule].moved:
            own = own_factors(A, B, record, records)
            with ieee():
                W = subtract(gather(stored, target.part), *own, operation.recipe(carrier, target), record.rounding)
            base = scatter(base, target.part, W.cpu())
    found = matrix_bytes(base)
    return found if sha256(found) == digest else None


def _factor(data: memoryview, operation: Operation, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=DTYPES[operation.adapter_dtype]).to(device)
