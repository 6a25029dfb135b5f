"""The folder of a start that a verb is given beside an adapter: a path, or a repository that one was pushed to."""

from __future__ import annotations

from pathlib import Path

from ..adapters.peft import ADAPTER_FILES
from ..checkpoint.source import is_hub_name, parse_hub_name, user_path
from ..output.names import ADAPTER_FOLDER, MANIFEST

_NEEDED = (MANIFEST, *(f"{ADAPTER_FOLDER}/{name}" for name in ADAPTER_FILES))


def start_folder(init: str | Path) -> Path:
    """DIR, also where DIR/ailora_init is given. Of `org/name[@revision]` the manifest and the adapter are fetched into
    the Hugging Face cache; CheckpointError where that is no start."""
    path = user_path(init, "--init")
    if not path.exists() and is_hub_name(path.as_posix()):
        from ..checkpoint.remote import fetch

        name = parse_hub_name(path.as_posix())
        return fetch(name.repo, name.revision, _NEEDED)
    return path.parent if not (path / MANIFEST).is_file() and (path.parent / MANIFEST).is_file() else path
