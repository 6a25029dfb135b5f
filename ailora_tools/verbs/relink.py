"""`relink`: another name for the base of an adapter, and no other byte changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.peft import ADAPTER_CONFIG
from ..checkpoint.gate import INDEX_BYTES, parse, read_path
from ..checkpoint.source import parse_hub_name, user_path
from ..errors import CheckpointError, OutputError, VerificationError
from ..output.claim import beside, claimed
from ..output.manifest import Manifest, read_manifest, restated
from ..output.names import ADAPTER_FOLDER, CARD, MANIFEST, OFFSET_FOLDER
from ..output.relinked import BASE, REVISION, relinked_files
from ..output.spans import sha256, sync_file, write_new
from .result import Result

_FOLDERS = ("", ADAPTER_FOLDER, OFFSET_FOLDER)  # of a start; the card in a residual base is that of the base


@dataclass(frozen=True)
class Relinked:
    """One adapter_config.json: its base and revision before and after."""

    file: str
    before: str | None
    revision_before: str | None
    after: str
    revision_after: str | None


@dataclass(frozen=True, repr=False)
class Relink(Result):
    """The configs of the folder, and all files that were written anew."""

    folder: Path
    configs: tuple[Relinked, ...]
    written: tuple[str, ...]

    _held, _columns = "configs", ("file", "before", "after", "revision_after")

    def told(self) -> str:
        """Which base it is for now."""
        now = self.configs[0]
        return f"of {self.folder} to {now.after}{f'@{now.revision_after}' if now.revision_after else ''}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"folder": str(self.folder), "configs": self.rows(), "written": list(self.written)}


def relink(folder: str | Path, base: str) -> Relink:
    """Let the adapters in `folder` name `base` as their base: "org/name", "org/name@revision", or a path that is there.

    `folder` is one of `initialize`, whose adapters lie in folders of their own, or any LoRA folder in PEFT's format.
    Changed are the two fields of adapter_config.json; in the front matter of an adapter's card `base_model`; and in
    ailora.json the hashes of these files. Each file is swapped in whole, and a second run ends what was interrupted.

    Raises CheckpointError where there is no such config, VerificationError where a file is not what ailora.json says,
    OutputError where the folder cannot be written.

    >>> plain = convert("start/ailora_init", "start", "for-others").folder
    >>> relink(plain, "org/model@v1").configs[0].after
    'org/model'
    """
    root = user_path(folder, "DIR")
    name, revision = _base(base)
    try:
        with claimed(root.absolute(), "relink"):
            return _relink(root, name, revision)
    except OSError as error:
        raise OutputError(f"{error.filename or root}: {error.strerror}.", "Nothing else was changed.") from None


def _relink(root: Path, name: str, revision: str | None) -> Relink:
    manifest = read_manifest(root) if (root / MANIFEST).is_file() else None
    folders = ("",) if manifest is None else tuple(_FOLDERS[manifest.base :])
    names = [f"{folder}/{file}".lstrip("/") for folder in folders for file in (ADAPTER_CONFIG, CARD)]
    old = {file: read_path(root / file, _WHOLE, limit=INDEX_BYTES) for file in names if (root / file).is_file()}
    configs = [file for file in old if file.endswith(ADAPTER_CONFIG)]
    if not configs:
        raise CheckpointError(f"{root}: no {ADAPTER_CONFIG} of PEFT is in it.", "Give the folder of an adapter.")
    new = relinked_files(old.__getitem__, old, folders, name, revision)
    if manifest is not None:
        _require_recorded(root, manifest, old, new)
        moved = {"name": name, "revision": revision}
        new[MANIFEST] = restated((root / MANIFEST).read_bytes(), new, moved=moved)
    written = _swap(root, new)
    return Relink(root, tuple(_record(path, old[path], name, revision) for path in configs), written)


def _base(text: str) -> tuple[str, str | None]:
    """An existing path wins over a name on the Hub."""
    path = user_path(text, "--base")
    if path.exists():
        return str(path.resolve()), None
    found = parse_hub_name(text)
    return found.repo, found.revision


def _require_recorded(root: Path, manifest: Manifest, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> None:
    """What was changed by others is not sealed: VerificationError. The new bytes are recorded already where an earlier
    run was interrupted after the manifest."""
    for file, data in new.items():
        recorded = manifest.files.get(file)
        if recorded is not None and recorded["sha256"] not in (sha256(old[file]), sha256(data)):
            raise VerificationError(f"{root / file}: is not what {MANIFEST} says.", _WHOLE)


def _swap(root: Path, new: Mapping[str, bytes]) -> tuple[str, ...]:
    """All new files are on the disk before the first takes its place, the manifest's before the others."""
    wanted = {path: data for path, data in new.items() if (root / path).read_bytes() != data}
    fresh = {path: beside(root / path, f".{os.getpid()}.partial", ".") for path in wanted}
    try:
        for path, data in wanted.items():
            write_new(fresh[path], data)
            fresh[path].chmod((root / path).stat().st_mode & 0o777)
        for path in sorted(wanted, key=lambda path: path != MANIFEST):
            fresh[path].replace(root / path)
            sync_file((root / path).parent)
    finally:
        for left in fresh.values():
            left.unlink(missing_ok=True)
    return tuple(sorted(wanted))


def _record(path: str, raw: bytes, base: str, revision: str | None) -> Relinked:
    before = parse(raw, path)
    return Relinked(path, before.get(BASE), before.get(REVISION), base, revision)


_WHOLE = "Restore the folder from a copy, or run the command that wrote it again."
