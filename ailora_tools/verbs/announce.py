"""What a verb says before it reads from the network."""

from __future__ import annotations

from collections.abc import Iterable

from ..checkpoint.files import Files
from ..progress import Progress


def announce(files: Files, parts: Iterable[tuple[str, int]], total: int, progress: Progress) -> None:
    """Tell how many of `total` bytes will be read: the sum of (file, bytes) parts, those on a disk here left out."""
    traffic = files.traffic
    if traffic is not None:
        far = sum(nbytes for name, nbytes in parts if files.local_path(name) is None)
        progress.reading(lambda: traffic.nbytes, far, total)
