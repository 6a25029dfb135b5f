"""What a folder is to be checked against: what was given, or what it says itself that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.folder import Adapter, open_adapter, read_adapter
from ..adapters.peft import ADAPTER_CONFIG
from ..checkpoint.files import Files, LocalFiles, below
from ..checkpoint.source import open_files
from ..errors import CheckpointError


@dataclass(frozen=True)
class Given:
    """Paths or Hub ids, as the options name them."""

    source: str | Path | None = None
    base: str | Path | None = None
    adapter: str | Path | None = None
    init: str | Path | None = None
    trained: str | Path | None = None

    def of_merge(self, told: Mapping[str, Any]) -> tuple[str | Path | None, str | Path | None]:
        """Base and adapter of a merged model, None for what is not known or not here."""
        stated = told.get("base")
        base = _here(stated.get("location")) if isinstance(stated, dict) and not stated.get("revision") else None
        return self.base or base, self.adapter or _here(told.get("adapter"))

    def of_convert(self, told: Mapping[str, Any]) -> tuple[str | Path, str | Path] | None:
        """Start and trained adapter of a converted one; None unless both are known."""
        init, trained = self.init or _here(told.get("init")), self.trained or _here(told.get("trained"))
        return (init, trained) if init is not None and trained is not None else None


def _here(location: object) -> str | None:
    """An absolute path of this machine that is there. It may be a stranger's word: nothing on a network is asked
    because of it, neither the Hub nor a share."""
    if not isinstance(location, str) or not Path(location).is_absolute() or location.startswith(("//", "\\\\")):
        return None
    try:
        return location if Path(location).exists() else None
    except (OSError, ValueError):
        return None


def adapter_of(model: str | Path) -> Adapter:
    """An adapter on this machine or on the Hub, there too in the root or in the one folder that has one."""
    files = open_files(model)
    return open_adapter(model) if isinstance(files, LocalFiles) else adapter_in(files)


def adapter_in(files: Files) -> Adapter:
    """The adapter in `files`; CheckpointError where there is none, or more than one below."""
    if isinstance(files, LocalFiles):
        return open_adapter(files.root)
    names = [name for name in files.names() if name.rpartition("/")[2] == ADAPTER_CONFIG]
    inner = [name.rpartition("/")[0] for name in names]
    if "" in inner:
        return read_adapter(files)
    if len(inner) != 1:
        raise CheckpointError(f"{files.origin.text}: no {ADAPTER_CONFIG} in it.", "Give the repository of an adapter.")
    return read_adapter(below(files, inner[0]))
