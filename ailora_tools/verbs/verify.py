"""`verify`: is this folder still what `init` wrote, and do base and adapter make the source again?

With the source at hand everything is compared with it: companions, headers, the plan derived anew, every matrix
recombined, every untouched byte. Without it the hashes of the manifest decide; it signs itself, so that they prove
integrity and not who made the folder. The result says which of the two was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from ..checkpoint.arithmetic import ieee
from ..checkpoint.index import Checkpoint, open_checkpoint
from ..checkpoint.source import SourceOptions, user_path
from ..display.shown import shows_progress
from ..errors import CheckpointError
from ..output.manifest import Manifest, fingerprint, read_manifest
from ..progress import Progress, heard
from ..proof.adapter_config import check_adapter_config
from ..proof.built import check_built
from ..proof.companions import check_companions, check_shards
from ..proof.extras import check_extras
from ..proof.folder import Check, check_adapter_tensors, check_files, check_neighbours, check_offset
from ..proof.matrices import check_matrices, look_at
from ..proof.plan import check_plan, derive
from ..proof.subject import Subject
from ..proof.untouched import check_untouched
from .announce import announce
from .result import Result


@dataclass(frozen=True, repr=False)
class Verification(Result):
    """The checks in order; `source` is the checkpoint compared with, None if the hashes alone were used."""

    _held, _columns = "checks", ("name", "holds", "detail")

    folder: Path
    source: str | None
    checks: tuple[Check, ...]
    manifest: Manifest

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    def told(self) -> str:
        """Whether it holds, and what does not."""
        broken = [check.name for check in self.checks if not check.holds]
        verdict = f"does not hold ({', '.join(broken)})" if broken else "holds"
        return f"of {self.folder}: {verdict}, compared with {self.source or 'hashes alone'}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder),
            "holds": self.holds,
            "compared_with": self.source or "hashes alone",
            "checks": [asdict(check) for check in self.checks],
        }


@shows_progress
def verify(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[SourceOptions],
) -> Verification:
    """Check a folder that `initialize` wrote against its manifest and, if it can be found, its source.

    `source`, read with `options`, defaults to the folder that the manifest names; a model on the Hub is only read
    again if it is given. It is an error if one is given and cannot be opened. Raises VerificationError for a manifest
    that is changed or not there; every other fault is a check that does not hold.

    >>> found = verify("start")
    >>> found.holds, [check.name for check in found.checks if not check.holds]
    (True, [])
    """
    progress = heard(progress)
    folder = user_path(folder, "DIR")
    manifest = read_manifest(folder)
    original, strange = _find_source(manifest, source, options, progress)
    operation, refusal = (None, "") if original is None else derive(manifest, original, folder)
    subject = Subject(folder, manifest, original, operation, refusal)
    progress.start("Checking", 2 + len(manifest.modules), 0)
    if original is not None:
        parts = [(shard, header.file_size) for shard, header in original.headers.items()]
        announce(original.files, parts, original.nbytes, progress)
    checks = [*strange, *_folder_checks(subject, progress)]
    with ieee():
        found = look_at(subject, progress)
        checks += check_matrices(subject, found)
        if manifest.extras:
            checks.append(check_extras(subject))
    if original is not None and manifest.base:
        checks.append(check_untouched(subject, original, found))
    checks.append(check_built(subject, ask=all(check.holds for check in checks)))
    return Verification(folder, original.location if original else None, tuple(checks), manifest)


def _folder_checks(subject: Subject, progress: Progress) -> Iterator[Check]:
    """What needs no matrix."""
    yield check_files(subject)
    yield check_neighbours(subject)
    if subject.source is not None:
        yield check_companions(subject, subject.source)
    if subject.manifest.base:
        yield check_shards(subject)
    progress.advance("files")
    if subject.source is not None:
        yield check_plan(subject)
    yield check_adapter_config(subject)
    yield check_adapter_tensors(subject)
    if subject.manifest.offset:
        yield check_offset(subject)
    progress.advance("adapter")


def _find_source(
    manifest: Manifest, given: str | Path | None, options: SourceOptions, progress: Progress
) -> tuple[Checkpoint | None, list[Check]]:
    """The source, if it is the one the manifest describes; a failed check if another was given by hand."""
    location = given if given is not None else manifest.source["location"]
    if given is None and manifest.source["revision"] is not None:
        progress.notice(_far(manifest.source))
        return None, []
    if given is None and not _is_here(location):
        return None, []
    try:
        checkpoint = open_checkpoint(location, **options)
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


def _is_here(location: object) -> bool:
    """Whether a manifest names an absolute path of this machine that is there. It may be a stranger's: nothing on a
    network is asked because it says so, neither the Hub nor a share."""
    if not isinstance(location, str) or not Path(location).is_absolute() or location.startswith(("//", "\\\\")):
        return False
    try:
        return Path(location).exists()
    except (OSError, ValueError):
        return False


def _far(source: Mapping[str, Any]) -> str:
    """Comparing every byte with the Hub would download the model again: only if it is asked for."""
    inside = f" --subfolder {source['subfolder']}" if source["subfolder"] else ""
    name = f"{source['location'].removeprefix('hf://')}@{source['revision']}"
    return f"the source is on the Hub, hashes decide; to compare every byte: --source {name}{inside}"
