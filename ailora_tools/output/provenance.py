"""What ailora.json says of the weights beside it, whichever version of this tool wrote it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.gate import DOCUMENT_BYTES, View, parse, read_bytes, typed
from ..errors import CheckpointError, VerificationError
from .manifest import RESTORE, SCHEMA, parse_manifest
from .names import MANIFEST


@dataclass(frozen=True)
class Provenance:
    """What a manifest says of the weights beside it: whether they are a residual base or, with `offset`, a frozen
    adapter stands for one, and the location of the model that they were made from."""

    base: bool
    offset: bool
    source: str


def provenance(files: Files) -> Provenance | None:
    """By the manifest in the folder of `files`, also one of an older schema: all have these fields. None without one.

    CheckpointError if it is there and cannot be read, VerificationError if it was changed or is of a newer schema.
    """
    if not has_manifest(files):
        return None
    raw, path = read_bytes(files, MANIFEST, DOCUMENT_BYTES), files.where(MANIFEST)
    try:
        body = parse(raw, path)
    except CheckpointError as error:
        raise VerificationError(error.problem, RESTORE) from None
    schema = body.get("schema") if isinstance(body, dict) else None
    if type(schema) is int and 0 < schema < SCHEMA:
        said = typed(body, path, _Said, RESTORE, error=VerificationError)
        return Provenance(said.base, said.offset, said.source.location)
    manifest = parse_manifest(raw, path)
    return Provenance(manifest.base, manifest.offset, str(manifest.source["location"]))


def has_manifest(files: Files) -> bool:
    """Whether one is in the folder of `files`, be it a link that leads nowhere, as to a blob missing in a cache."""
    if isinstance(files, LocalFiles):
        return os.path.lexists(files.root / MANIFEST)
    return MANIFEST in files.names()


class _Origin(View):
    location: str


class _Said(View):
    """What every schema has; `offset` came with the third."""

    base: bool
    source: _Origin
    offset: bool = False
