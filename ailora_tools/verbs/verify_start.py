"""`verify` of a folder of `init`: is it still what was written, and do base and adapter make the source again?

With the source at hand everything is compared with it: companions, headers, the plan derived anew, every matrix
recombined, every untouched byte. Without it the hashes of the manifest decide; it signs itself, so that they prove
integrity and not who made the folder. The result says which of the two was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.gate import DOCUMENT_BYTES, read_bytes
from ..checkpoint.index import Checkpoint, read_checkpoint
from ..checkpoint.source import SourceOptions
from ..errors import CheckpointError, TeamError
from ..output.manifest import Manifest, fingerprint, parse_manifest, read_manifest
from ..output.names import MANIFEST
from ..output.spans import sha256
from ..progress import Progress
from ..proof.adapter_config import check_adapter_config
from ..proof.built import check_built
from ..proof.companions import check_companions, check_shards
from ..proof.extras import check_extras
from ..proof.folder import Check, check_adapter_tensors, check_files, check_neighbours, check_offset
from ..proof.grid import check_grid
from ..proof.matrices import check_matrices
from ..proof.one_pass import Passed, passed
from ..proof.plan import check_plan, derive
from ..proof.subject import Subject
from ..proof.untouched import check_untouched
from ..proof.walk import Count, Item, items, walking
from ..team.sharing import serve, share
from ..team.team import Job
from .announce import announce
from .processes import Library, require_same
from .verification import START, Verification
from .verify_given import here


def verify_start(
    job: Job, library: Library, files: Files, given: str | Path | None, options: SourceOptions, progress: Progress
) -> Verification:
    """For the first process. `library` has opened `files`; `given` is the source, read with `options`.

    Raises VerificationError for a manifest that is changed or not there; every other fault is a check that does not
    hold.
    """
    manifest = _manifest(files)
    original, strange = _find_source(manifest, given, library, options, progress)
    operation, refusal = (None, "") if original is None else derive(manifest, original)
    subject = Subject(files, manifest, original, operation, refusal)
    if original is not None:
        parts = [(shard, header.file_size) for shard, header in original.headers.items()]
        announce(original.files, parts, original.nbytes, progress)
    found = _walked(job, library, subject, progress)
    checks = tuple(_checks(subject, found, strange))
    return Verification(subject.folder or files.origin.text, original.location if original else None, checks, manifest)


def help_start(job: Job, library: Library, files: Files, told: Mapping[str, Any], options: SourceOptions) -> None:
    """The part of all processes but the first, which has `told` what it works with."""
    manifest = _manifest(files)
    if told["manifest"] != sha256(manifest.to_json().encode()):
        raise TeamError(
            f"{job.me}: {files.origin.text} is not what it is in the first process.", "Give all the same folder."
        )
    original, source = None, told["source"]
    if source is not None:
        original = read_checkpoint(library.open(source["from"], **options))
        require_same(job, original, source["shards"])
    subject = Subject(files, manifest, original)
    serve(job, "files", items(subject), walking(subject, lambda nbytes: None))


def _manifest(files: Files) -> Manifest:
    if isinstance(files, LocalFiles):
        return read_manifest(files.root)
    return parse_manifest(read_bytes(files, MANIFEST, DOCUMENT_BYTES), files.where(MANIFEST))


def _walked(job: Job, library: Library, subject: Subject, progress: Progress) -> dict[Item, Passed]:
    """What all processes found, by item."""
    every, source = items(subject), subject.source
    told: dict[str, Any] = {"manifest": sha256(subject.manifest.to_json().encode()), "source": None}
    if source is not None:
        told["source"] = {"from": source.location, "shards": fingerprint(source)}
    job.call({"what": START, "opened": library.tell(), **told})
    progress.start("Checking", len(every), 0)
    read = Count()
    progress.bytewise(lambda: read.nbytes, sum(item.nbytes for item in every))
    found = {}
    for item, part in share(job, "files", every, walking(subject, read.add), None, progress):
        found[item] = passed(subject, part.meta)
        if part.rank:  # of its own items this process has counted the blocks
            read.add(item.nbytes)
        progress.advance(item.label, item.nbytes)
    return found


def _checks(subject: Subject, found: Mapping[Item, Passed], strange: Sequence[Check]) -> Iterator[Check]:
    """In the order in which they are shown."""
    source, manifest = subject.source, subject.manifest
    files = {item.label: one for item, one in found.items() if item.is_file}
    by_module = {look.module: look for one in found.values() for look in one.looks}
    looks = [by_module[module] for module in subject.modules]
    checks = [*strange, *_folder_checks(subject, files), *check_matrices(subject, looks)]
    if manifest.settings.get("grid"):
        checks.append(check_grid(subject, looks))
    if manifest.extras:
        checks.append(check_extras(subject))
    if source is not None and manifest.base:
        checks.append(check_untouched(subject, source, files, looks))
    yield from checks
    yield check_built(subject, ask=all(check.holds for check in checks))


def _folder_checks(subject: Subject, files: Mapping[str, Passed]) -> Iterator[Check]:
    """What needs no matrix."""
    yield check_files(subject, {name: one.fault for name, one in files.items()})
    yield check_neighbours(subject)
    if subject.source is not None:
        yield check_companions(subject, subject.source)
    if subject.manifest.base:
        yield check_shards(subject)
    if subject.source is not None:
        yield check_plan(subject)
    yield check_adapter_config(subject)
    yield check_adapter_tensors(subject)
    if subject.manifest.offset:
        yield check_offset(subject)


def _find_source(
    manifest: Manifest, given: str | Path | None, library: Library, options: SourceOptions, progress: Progress
) -> tuple[Checkpoint | None, list[Check]]:
    """The source, if it is the one the manifest describes; a failed check if another was given by hand."""
    location = given if given is not None else manifest.source["location"]
    if given is None and manifest.source["revision"] is not None:
        progress.notice(_far(manifest.source))
        return None, []
    if given is None and here(location) is None:
        return None, []
    try:
        checkpoint = read_checkpoint(library.open(location, **options))
    except CheckpointError:
        if given is not None:
            raise
        return None, []
    if fingerprint(checkpoint) == manifest.source["shards"]:
        return checkpoint, []
    if given is None:
        progress.notice(f"The model at {location} is no longer the one this folder was made from: hashes alone decide.")
        return None, []
    return None, [Check("source", False, f"{location} is not the model this folder was made from")]


def _far(source: Mapping[str, Any]) -> str:
    """Comparing every byte with the Hub would download the model again: only if it is asked for."""
    inside = f" --subfolder {source['subfolder']}" if source["subfolder"] else ""
    name = f"{source['location'].removeprefix('hf://')}@{source['revision']}"
    return f"the source is on the Hub, hashes decide; to compare every byte: --source {name}{inside}"
