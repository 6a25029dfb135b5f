"""What a verb says before it reads from the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..checkpoint.files import Files
from ..checkpoint.index import Checkpoint
from ..progress import Progress


def announce(files: Files, parts: Iterable[tuple[str, int]], total: int, progress: Progress) -> None:
    """Tell how many of `total` bytes will be read: the sum of (file, bytes) parts, those on a disk here left out."""
    traffic = files.traffic
    if traffic is not None:
        progress.reading(lambda: traffic.nbytes, _far(files, parts), total)


def announce_both(sides: Iterable[tuple[Checkpoint, Sequence[tuple[str, int]]]], progress: Progress) -> None:
    """The same of several models that are read at a time: of each its parts."""
    far = [(one, parts, one.files.traffic) for one, parts in sides if one.files.traffic is not None]
    if far:
        nbytes = sum(_far(one.files, parts) for one, parts, _ in far)
        read = [traffic for _, _, traffic in far if traffic is not None]
        progress.reading(lambda: sum(traffic.nbytes for traffic in read), nbytes, sum(one.nbytes for one, _, _ in far))


def _far(files: Files, parts: Iterable[tuple[str, int]]) -> int:
    """Bytes of the parts that are not on a disk here."""
    return sum(nbytes for name, nbytes in parts if files.local_path(name) is None)
