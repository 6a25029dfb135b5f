"""What a folder is to be checked against: what was given, or what it says itself that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.folder import Adapter, adapter_in, open_adapter
from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.gate import INDEX_BYTES, View, read_json, typed
from ..checkpoint.source import open_files
from ..output.names import RESULT


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
        base = here(stated.get("location")) if isinstance(stated, dict) and not stated.get("revision") else None
        return self.base or base, self.adapter or here(told.get("adapter"))

    def of_convert(self, told: Mapping[str, Any]) -> tuple[str | Path, str | Path] | None:
        """Start and trained adapter of a converted one; None unless both are known."""
        init, trained = self.init or here(told.get("init")), self.trained or here(told.get("trained"))
        return (init, trained) if init is not None and trained is not None else None


class _Record(View):
    """What is used of a module's record of `convert`."""

    module: str = ""
    rank: int = 0
    error: float = 0.0
    taken: float | None = None


class _Told(View):
    """What is used of ailora-result.json."""

    verb: str = ""
    files: tuple[str, ...] = ()
    modules: tuple[_Record, ...] = ()
    added: tuple[str, ...] = ()


def read_told(files: Files) -> dict[str, Any]:
    """ailora-result.json, {} where there is none; CheckpointError for one that this tool cannot have written."""
    if RESULT not in files.names():
        return {}
    told = read_json(files, RESULT, INDEX_BYTES)
    typed(told, files.where(RESULT), _Told, "Restore it from a copy, or take it away and give what DIR was made from.")
    return told


def here(location: object) -> str | None:
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
