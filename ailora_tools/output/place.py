"""Where an output goes: never into an input, nor around one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.files import Origin
from ..errors import OutputError
from ..progress import Progress
from .destination import destination


def output_folder(given: str | Path | None, default: str | Path, inputs: Sequence[Origin], progress: Progress) -> Path:
    """The folder to make: `given`, or `default` in the current folder; beside an input, which is told, where that is in
    it. A link stands for what it leads to. Raises OutputError if it cannot be used (see `destination`), is an input,
    or lies in one or around one."""
    folder = destination(given if given is not None else _beside(inputs) / default)
    if given is None and folder.parent != Path.cwd() / Path(default).parent:
        progress.notice(f"the output goes beside the model: {folder}")
    if folder.is_symlink():
        folder = folder.resolve()
    for origin in inputs:
        require_outside(folder, origin)
    return folder


def _beside(inputs: Sequence[Origin]) -> Path:
    """The current folder, or the one around the inputs that it lies in."""
    here = Path.cwd()
    for origin in inputs:
        source = origin.path.resolve() if origin.path is not None else None
        if source is not None and source.is_dir() and source in (here.resolve(), *here.resolve().parents):
            here = source.parent
    return here


def require_outside(final: Path, origin: Origin) -> None:
    """The output must not be the source, lie in it, or contain it."""
    if origin.path is None:
        return
    out, source = final.resolve(), origin.path
    src = source.resolve()
    if out == src:
        raise OutputError(f"{final}: the output folder is the source itself.", "Choose another folder with -o.")
    if src in out.parents:
        raise OutputError(f"{final}: the output folder lies inside the source {source}.", "Choose another -o.")
    if out in src.parents:
        raise OutputError(f"{final}: the source {source} lies inside the output folder.", "Choose another -o.")


def require_space(folder: Path, nbytes: int) -> None:
    """Refuse before the first byte is written where there is clearly no room for `nbytes` more."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise OutputError(
            f"{folder}: {nbytes / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free.",
            "Free some space, or choose another disk with -o.",
        )


def written_bytes(root: Path) -> int:
    """What the files in a folder take up on the disk already; files that have only been given a size take nothing."""
    return sum(_on_disk(path) for path in root.rglob("*") if path.is_file())


def _on_disk(path: Path) -> int:
    status = path.stat()
    return 512 * status.st_blocks if hasattr(status, "st_blocks") else status.st_size
