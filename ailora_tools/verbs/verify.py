"""`verify`: is this folder still what `init` wrote, and do base and adapter make the source again?

With the source at hand every matrix is recombined and every untouched byte compared; without it the hashes
of the manifest decide. The result says which of the two was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from ..adapters.peft import WEIGHTS, magnitude_name, tensor_names
from ..checkpoint.ahead import read_ahead
from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.header import TensorInfo
from ..checkpoint.index import Checkpoint, open_checkpoint, read_header
from ..checkpoint.source import SourceOptions
from ..checkpoint.stream import load_matrix, matrix_bytes
from ..errors import CheckpointError, listed
from ..linalg.recombine import Recombination, recombine
from ..matrices.dequantise import dequantise
from ..matrices.gather import gather, scatter
from ..matrices.quantisation import find_quantised
from ..output.adapter import FOLDER
from ..output.manifest import Manifest, ModuleRecord, fingerprint, read_manifest
from ..output.spans import blocks, sha256
from ..progress import Progress, Silent
from ..proof.folder import (
    Check,
    check_adapter_config,
    check_adapter_tensors,
    check_files,
    check_neighbours,
    check_offset,
)
from ..surgery.blocks import own_factors
from .announce import announce

_SLACK = 1e-3  # float64 here, float32 in `init` where the recorded error was measured
_FLOOR = 1e-9
_ROUNDED = 1e-6  # of magnitudes, stored in float32
_NEAR = 0.25  # rounding moves `moved` by far less than this from 0, 1 or -1


@dataclass(frozen=True)
class Verification:
    """The checks in order; `source` is the checkpoint compared with, None if the hashes alone were used."""

    folder: Path
    source: str | None
    checks: tuple[Check, ...]
    manifest: Manifest

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder),
            "holds": self.holds,
            "compared_with": self.source or "hashes alone",
            "checks": [asdict(check) for check in self.checks],
        }


def verify(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[SourceOptions],
) -> Verification:
    """Check a folder that `initialize` wrote against its manifest and, if it can be found, its source.

    `source`, read with `options`, defaults to the folder that the manifest names; a model on the Hub is only read
    again if it is given. It is an error if one is given and cannot be opened. Raises VerificationError for a manifest
    that is changed or not there; every other fault is a check that does not hold.
    """
    progress = progress or Silent()
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    original, strange = _find_source(manifest, source, options, progress)
    progress.start("Checking", 2 + len(manifest.modules), 0)
    if original is not None:
        parts = [(shard, header.file_size) for shard, header in original.headers.items()]
        announce(original.files, parts, original.nbytes, progress)
    checks = [check_files(folder, manifest), check_neighbours(folder, manifest)]
    progress.advance("files")
    checks += [check_adapter_config(folder, manifest), check_adapter_tensors(folder, manifest), *strange]
    if manifest.offset:
        checks.append(check_offset(folder, manifest))
    progress.advance("adapter")
    checks += _check_matrices(folder, manifest, original, progress)
    if original is not None and manifest.settings["dora"]:
        checks.append(_check_magnitudes(folder, manifest, original))
    if original is not None and manifest.base:
        checks.append(_check_untouched(folder, manifest, original))
    return Verification(folder, original.location if original else None, tuple(checks), manifest)


def _find_source(
    manifest: Manifest, given: str | Path | None, options: SourceOptions, progress: Progress
) -> tuple[Checkpoint | None, list[Check]]:
    """The source, if it is the one the manifest describes; a failed check if another was given by hand."""
    location = given if given is not None else manifest.source["location"]
    if given is None and manifest.source["revision"] is not None:
        progress.notice(_far(manifest.source))
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


def _far(source: Mapping[str, Any]) -> str:
    """Comparing every byte with the Hub would download the model again: only if it is asked for."""
    inside = f" --subfolder {source['subfolder']}" if source["subfolder"] else ""
    name = f"{source['location'].removeprefix('hf://')}@{source['revision']}"
    return f"the source is on the Hub, hashes decide; to compare every byte: --source {name}{inside}"


def _check_matrices(
    folder: Path, manifest: Manifest, original: Checkpoint | None, progress: Progress
) -> Iterator[Check]:
    """What is in the base, and whether base and adapter make the source again, module by module."""
    found = []
    for record in manifest.modules:
        found.append(_look_at(folder, manifest, record, original))
        progress.advance(record.module)
    yield _base_check(found, manifest)
    if original is None:
        return
    foreign = [look.record.tensor for look in found if look.source_sha256 != look.record.source_sha256]
    if foreign:
        yield Check("source", False, f"{original.location} was changed in {listed(foreign)}")
    else:
        yield _recombination_check(found)


@dataclass(frozen=True)
class _Look:
    """One module as found: hashes of its stored bytes (None: unreadable) and how it recombines."""

    record: ModuleRecord
    base_sha256: str | None
    source_sha256: str | None
    numbers: Recombination | None


def _look_at(folder: Path, manifest: Manifest, record: ModuleRecord, original: Checkpoint | None) -> _Look:
    W = _projection(_original(original, record), record) if original else None
    base = _projection(_read(LocalFiles(folder), record.file, record.tensor), record) if manifest.base else W
    A, B = (_read(LocalFiles(folder / FOLDER), WEIGHTS, name) for name in tensor_names(record.module))
    if A is not None and B is not None:
        A, B = own_factors(A, B, record, manifest.modules)
    numbers = None
    if base is not None and A is not None and B is not None and _fit(record, base, A, B):
        lessened = base.double() - record.scaling * B.double() @ A.double() if manifest.offset else base
        numbers = recombine(lessened, A, B, record.scaling, W, record.overlap)
    return _Look(record, _digest(base), _digest(W), numbers)


def _fit(record: ModuleRecord, base: Tensor, A: Tensor, B: Tensor) -> bool:
    rows, columns = record.shape
    return (base.shape, A.shape, B.shape) == ((rows, columns), (record.rank, columns), (rows, record.rank))


def _read(files: Files, file: str, tensor: str) -> Tensor | None:
    """A tensor as stored, None if it cannot be read: the file checks say why."""
    try:
        return load_matrix(files, file, read_header(files, file).tensors[tensor])
    except (CheckpointError, KeyError):
        return None


def _projection(stored: Tensor | None, record: ModuleRecord) -> Tensor | None:
    """W (out, in) out of the stored tensor; None if that has another shape."""
    part = record.part
    if stored is None or stored.ndim != 2 or part is None:
        return stored
    lines = stored.shape[1 if part.transposed else 0]
    return gather(stored, part) if max(stop for _, stop in part.runs) <= lines else None


def _original(source: Checkpoint, record: ModuleRecord) -> Tensor | None:
    if record.tensor not in source.tensors:
        return None
    file, info = source.tensors[record.tensor]
    stored = load_matrix(source.files, file, info)
    return dequantise(stored, find_quantised(source, record.tensor), source.files)


def _digest(W: Tensor | None) -> str | None:
    return None if W is None else sha256(matrix_bytes(W))


def _base_check(found: Sequence[_Look], manifest: Manifest) -> Check:
    """Every touched matrix is the residual that was written; if not, which mistake it looks like."""
    if not manifest.base and all(look.base_sha256 is None for look in found):
        return Check("base", True, "the base is left alone; the source is not at hand")
    wrong = [look for look in found if look.base_sha256 != look.record.base_sha256]
    if not wrong:
        return Check("base", True, f"{len(found)} matrices hash as written")
    kinds: dict[str, list[str]] = {}
    for look in wrong:
        kinds.setdefault(_diagnose(look), []).append(look.record.tensor)
    return Check("base", False, "; ".join(f"{len(names)} {kind}: {listed(names, 2)}" for kind, names in kinds.items()))


def _diagnose(look: _Look) -> str:
    if look.base_sha256 is None or look.numbers is None:
        return "cannot be read"
    if look.base_sha256 == look.record.source_sha256 or abs(look.numbers.moved - 1) < _NEAR:
        return "of the original, not residualised (the adapter would count twice)"
    if abs(look.numbers.moved + 1) < _NEAR:
        return "residualised twice"
    return "changed, or of another model"


def _recombination_check(found: Sequence[_Look]) -> Check:
    """norm(W - (W_res + s B A)) / norm(W) must be what the manifest recorded."""
    errors = [(look, look.numbers.error) for look in found if look.numbers and look.numbers.error is not None]
    wrong = [
        f"{look.record.module}: {error:.2e}, recorded {look.record.reconstruction_error:.2e}"
        for look, error in errors
        if not error <= look.record.reconstruction_error * (1 + _SLACK) + _FLOOR
    ]
    if len(errors) < len(found):
        wrong.append(f"{len(found) - len(errors)} matrices cannot be recombined")
    largest = max((error for _, error in errors), default=0.0)
    return Check("recombination", not wrong, listed(wrong) or f"largest error {largest:.2e}, as recorded")


def _check_magnitudes(folder: Path, manifest: Manifest, original: Checkpoint) -> Check:
    """DoRA's magnitudes are the norms of the original's rows, so that they change nothing at step 0."""
    modules = {record.module: record for record in manifest.modules}
    wrong = []
    for module, record in modules.items():
        held, stored = _read(LocalFiles(folder / FOLDER), WEIGHTS, magnitude_name(module)), _original(original, record)
        part = record.part
        if held is None or stored is None:
            wrong.append(f"{module} cannot be read")
            continue
        norms = torch.linalg.vector_norm(stored.double(), dim=0 if part is not None and part.transposed else 1)
        if held.shape != norms.shape or not torch.allclose(held.double(), norms, rtol=_ROUNDED):
            wrong.append(module)
    detail = f"of {len(modules)} modules the norms of the original's rows"
    return Check("magnitudes", not wrong, f"not the norms of the original's rows: {listed(wrong)}" if wrong else detail)


def _check_untouched(folder: Path, manifest: Manifest, original: Checkpoint) -> Check:
    """Every tensor that the surgery did not touch has the source's bytes."""
    touched = {record.tensor for record in manifest.modules}
    files, compared = LocalFiles(folder), 0
    changed = _changed_beside(folder, manifest, original)
    for shard, source in original.headers.items():
        try:
            here = read_header(files, shard)
        except CheckpointError:
            changed.append(f"{shard} (unreadable)")
            continue
        for name in source.tensors.keys() - touched:
            if name in here.tensors and _same_bytes(original, shard, source.tensors[name], files, here.tensors[name]):
                compared += source.tensors[name].nbytes
            else:
                changed.append(name)
    detail = f"{compared / 1e9:.2f} GB of untouched tensors are the source's, byte for byte"
    return Check("untouched bytes", not changed, f"changed: {listed(sorted(changed))}" if changed else detail)


def _changed_beside(folder: Path, manifest: Manifest, original: Checkpoint) -> list[str]:
    """Fused tensors whose other lines, such as W^K, are not the source's."""
    changed = []
    fused = {record.tensor: record for record in manifest.modules if record.part is not None}
    for tensor, record in fused.items():
        here, there = _read(LocalFiles(folder), record.file, tensor), _original(original, record)
        if here is None or there is None or here.shape != there.shape:
            changed.append(tensor)
            continue
        for mate in manifest.modules:
            if mate.tensor == tensor and (part := mate.part) is not None:
                blank = torch.zeros(mate.shape)
                here, there = scatter(here, part, blank), scatter(there, part, blank)
        if not torch.equal(here, there.to(here.dtype)):
            changed.append(tensor)
    return changed


def _same_bytes(original: Checkpoint, shard: str, source: TensorInfo, files: LocalFiles, here: TensorInfo) -> bool:
    if (source.nbytes, source.dtype, source.shape) != (here.nbytes, here.dtype, here.shape):
        return False
    parts = list(blocks(0, source.nbytes))
    there = read_ahead(original.files, [(shard, source.start + low, source.start + high) for low, high in parts])
    return all(
        files.read(shard, here.start + low, here.start + high) == data
        for (low, high), data in zip(parts, there, strict=True)
    )
