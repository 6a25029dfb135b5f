"""The folder of `init` that an adapter lies in."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.source import user_path
from ..output.manifest import Manifest, read_manifest


def init_folder(adapter_dir: str | Path) -> Path:
    """The folder that holds `adapter_dir` (`.../ailora_init`)."""
    return user_path(adapter_dir, "adapter_dir").resolve().parent


def manifest_of(adapter_dir: str | Path) -> Manifest:
    """CheckpointError if there is no manifest beside `adapter_dir`, VerificationError if it was changed."""
    return read_manifest(init_folder(adapter_dir))
