"""Columns that are added block by block, in memory that seldom moves."""

from __future__ import annotations

from torch import Tensor


class Basis:
    """A matrix (m, k) whose k grows. Concatenated anew for each block it leaves holes in the heap that nothing fits
    into, and `init` of 8192 x 8192 noise takes twice the memory; here its place doubles a few times."""

    def __init__(self, first: Tensor) -> None:
        """From `first` (m, width), whose dtype and device it keeps."""
        self._rows = first.T.contiguous()  # (capacity, m): what is not used yet takes no page
        self._count = first.shape[1]

    @property
    def columns(self) -> Tensor:
        """What is there, (m, k); a view."""
        return self._rows[: self._count].T

    def append(self, block: Tensor) -> None:
        """`block` (m, width) at the right of what is there."""
        end = self._count + block.shape[1]
        if end > len(self._rows):
            grown = self._rows.new_empty(2 * end, self._rows.shape[1])
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        self._rows[self._count : end] = block.T
        self._count = end
