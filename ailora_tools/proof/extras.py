"""Whether what trains beside the factors starts as it should: with the source's bytes, or as the seed makes it."""

from __future__ import annotations

from collections.abc import Iterator

from ..adapters.peft import PREFIX
from ..checkpoint.stream import matrix_bytes
from ..errors import AiloraError, listed
from ..output.spans import sha256
from ..surgery.describe import adapter_name
from ..surgery.extras import values
from .folder import Check
from .subject import Subject


def check_extras(subject: Subject) -> Check:
    """Heads and tokens hash as written and, with the source at hand, are what `init` makes of it."""
    records = subject.manifest.extras
    faults = [*_changed(subject), *_underived(subject)]
    new = sum(record.tensor is None for record in records)
    told = f"{len(records)} tensors hash as written" + f", {new} of them made anew" * bool(new)
    return Check("heads and tokens", not faults, listed(faults) or told)


def _changed(subject: Subject) -> Iterator[str]:
    for record in subject.manifest.extras:
        if _digest(subject, record.name) != record.sha256:
            yield f"{record.name} was changed"


def _digest(subject: Subject, name: str) -> str | None:
    """SHA-256 of a tensor of the adapter; None if it is not there."""
    header = subject.adapter_header
    held = header.tensors.get(f"{PREFIX}{name}") if header is not None else None
    if header is None or held is None:
        return None
    return sha256(subject.adapter_files.read(header.file, held.start, held.stop))


def _underived(subject: Subject) -> Iterator[str]:
    """Those that the source and the seed do not give."""
    operation = subject.operation
    recorded = {record.name: record.sha256 for record in subject.manifest.extras}
    if operation is None:
        return
    for extra in operation.extras:
        name = adapter_name(extra)
        try:
            data = matrix_bytes(values(extra, operation.checkpoint.files, operation.settings.seed))
        except AiloraError as error:
            yield error.problem
            continue
        if sha256(data) != recorded.get(name):
            yield f"{name} is not {'that of the source' if extra.stored else 'as the seed makes it'}"
