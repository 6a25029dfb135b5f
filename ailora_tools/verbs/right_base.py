"""Whether an adapter is for this base, or for the one that `init` made of it or from which it was made."""

from __future__ import annotations

from pathlib import Path

from ..adapters.folder import Adapter
from ..checkpoint.gate import stated_path
from ..checkpoint.index import Checkpoint
from ..errors import AiloraError, TargetError
from ..output.manifest import Manifest, read_manifest
from ..output.names import MANIFEST


def require_right_base(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """TargetError for the wrong one of two: an adapter that started from the weights fits the residual base only, a
    plain LoRA the original only."""
    stated = str(adapter.config.get("base_model_name_or_path") or "")
    trained_on = stated_path(stated)
    here = checkpoint.origin.path.resolve() if checkpoint.origin.path else None
    if trained_on is not None and trained_on == here:
        return
    residual = manifest_of(trained_on)
    if residual is not None and residual.base:
        raise TargetError(
            f"{adapter.location} was trained on the residual base {trained_on}, not on {checkpoint.location}: what "
            "`init` moved into it would count twice.",
            f"Merge it into {trained_on}, or `ailora-tools convert` it for the original first.",
        )
    manifest = manifest_of(here)
    original = str(manifest.source["location"]) if manifest is not None and manifest.base else ""
    if original and original.removeprefix("hf://") in (stated, str(trained_on)):
        raise TargetError(
            f"{adapter.location} is for the original {original}; {checkpoint.location} is its residual base, which "
            "lacks what `init` moved.",
            f"Merge it into {original}.",
        )


def manifest_of(folder: Path | None) -> Manifest | None:
    """That of a folder of `init`; None for any other."""
    try:
        return read_manifest(folder) if folder and (folder / MANIFEST).is_file() else None
    except (AiloraError, OSError):
        return None
