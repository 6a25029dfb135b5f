"""Whole tensors beside sharded ones."""

from __future__ import annotations

from torch import Tensor


def placed_like(whole: Tensor, other: Tensor) -> Tensor:
    """`whole`, which every process holds, for arithmetic with `other` of the same shape: a DTensor over the devices of
    `other`, where that is one. Nothing is sent."""
    mesh = getattr(other, "device_mesh", None)
    if mesh is None:
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
