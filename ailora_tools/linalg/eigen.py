"""Eigenproblems of large symmetric matrices: by LAPACK, or by what a device has for it, and there in turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from . import portions

_DEVICE_SIDE = 1024  # vectors of smaller ones come faster from the CPU
_one = threading.Lock()


def eigh(G: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues and the vectors of symmetric G (n, n), float64, on its device."""
    if len(G) > _DEVICE_SIDE:
        return torch.linalg.eigh(G)  # type: ignore[no-any-return]
    values, vectors = torch.linalg.eigh(G.cpu())
    return values.to(G.device), vectors.to(G.device)


@contextmanager
def turn(device: torch.device) -> Iterator[None]:
    """Where a matrix is made and its eigenproblem solved: on a device when no other thread is at one. The solver keeps
    all of it busy, in the memory of several such matrices, and returns when it is done."""
    if not portions.accelerated(device):
        yield
        return
    with _one:
        yield
