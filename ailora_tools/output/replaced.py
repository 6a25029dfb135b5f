"""What `--overwrite` may remove: folders that this tool wrote, as what lies in them says, with nothing else inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError, listed
from .names import ANALYSIS, MANIFEST, METRICS, RANKS, REPORT, RESULT

_LARGEST = 1 << 30


def require_ours(final: Path, verb: str, force: bool) -> None:
    """OutputError unless `final` is empty, or was written by `verb` and holds nothing that others put there."""
    if final.is_dir() and not any(final.iterdir()):
        return
    marker, listing = _OF_VERB.get(verb, _RESULT)
    own = _own_files(final, marker, listing)
    if own is None:
        raise OutputError(
            f"{final}: was not written by ailora-tools {verb} (no {marker} of it), so it is not replaced.",
            "Remove it yourself, or choose another -o.",
        )
    foreign = sorted(_files(final) - own - {marker})
    if foreign and not force:
        raise OutputError(
            f"{final}: holds {len(foreign)} files that ailora-tools did not write, such as {listed(foreign)}.",
            "Move them away, or give --force to remove them with the folder.",
        )


def _own_files(final: Path, marker: str, listing: Callable[[Mapping[str, Any]], set[str]]) -> set[str] | None:
    path = final / marker
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return None
        return listing(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _files(final: Path) -> set[str]:
    found = set()
    for folder, _, names in os.walk(final):
        found |= {Path(folder, name).relative_to(final).as_posix() for name in names}
    return found


def _of_manifest(document: Mapping[str, Any]) -> set[str]:
    document["schema"]
    return set(document["files"])


def _of_result(document: Mapping[str, Any]) -> set[str]:
    document["verb"]
    return set(document["files"])


def _of_analysis(document: Mapping[str, Any]) -> set[str]:
    if not str(document["format"]).startswith("ailora-tools"):
        raise KeyError("format")
    return {METRICS, REPORT, RANKS}


_RESULT = (RESULT, _of_result)
_OF_VERB = {"init": (MANIFEST, _of_manifest), "analyze": (ANALYSIS, _of_analysis)}
