"""The folder of `init` that an adapter lies in."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.source import user_path
from ..output.manifest import Manifest, read_manifest
from ..output.names import ADAPTER_FOLDER, MANIFEST


def start_folder(adapter_dir: str | Path) -> Path:
    """The adapter of the start, absolute: `adapter_dir` (`.../ailora_init`), or the one in a folder of `init`."""
    folder = user_path(adapter_dir, "adapter_dir").resolve()
    return folder / ADAPTER_FOLDER if (folder / MANIFEST).is_file() else folder


def init_folder(adapter_dir: str | Path) -> Path:
    """The folder of `init` that holds `adapter_dir`."""
    return start_folder(adapter_dir).parent


def manifest_of(adapter_dir: str | Path) -> Manifest:
    """CheckpointError if there is no manifest beside `adapter_dir`, VerificationError if it was changed."""
    return read_manifest(init_folder(adapter_dir))
