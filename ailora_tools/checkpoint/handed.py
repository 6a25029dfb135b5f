"""Files of the Hub that one process opens and others read on from: what it has read to plan the work is told to them,
so that a job of many processes reads no byte twice. Files of a disk each process opens by itself."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from dataclasses import asdict
from typing import Any

from .files import Files
from .hub import Listing, Repository
from .remote import HubFiles
from .transfer import Backoff

Told = dict[str, Any]


def recorded(files: Files) -> Files:
    """The same files; what is read of the Hub from now on is remembered until it is told."""
    if isinstance(files, HubFiles):
        files.known = {}
    return files


def told(files: Files) -> Told | None:
    """For others, as JSON: the listing at one commit and what was read. None for files of a disk."""
    if not isinstance(files, HubFiles) or files.known is None:
        return None
    reads, files.known = files.known, None
    coded = [[*span, b64encode(zlib.compress(data)).decode()] for span, data in reads.items()]
    origin = {"name": files.origin.location, "subfolder": files.origin.subfolder, "download": files.download}
    return {**origin, "connections": files.connections, "listing": asdict(files.listing), "reads": coded}


def handed(told: Told) -> Files:
    """The files of another process, without a word to the Hub until a byte is wanted that was not told."""
    listing = Listing(told["listing"]["commit"], told["listing"]["sizes"], tuple(told["listing"]["strange"]))
    files = HubFiles(
        Repository(told["name"], listing.commit), listing, told["subfolder"], connections=told["connections"],
        download=told["download"], backoff=Backoff(),
    )  # fmt: skip
    files.known = {(name, start, stop): zlib.decompress(b64decode(data)) for name, start, stop, data in told["reads"]}
    files.settled = True
    return files
