"""ailora.json: what was done to which tensor, with the numbers, and a hash of everything in the folder.

No time stamps: the same input, options and seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from ..checkpoint.gate import (
    DOCUMENT_BYTES,
    Amount,
    Digest,
    Factor,
    Meta,
    Rank,
    Side,
    Size,
    View,
    parse,
    read_path,
    stays_inside,
    typed,
)
from ..checkpoint.header import quoted
from ..checkpoint.index import Checkpoint
from ..errors import CheckpointError, VerificationError, listed
from ..matrices.layouts import Part
from ..methods import RULES, is_role
from .names import MANIFEST
from .spans import in_utf8, json_text, sha256

SCHEMA = 5


@dataclass(frozen=True)
class ModuleRecord:
    """One projection: where it lies, what was asked, and the numbers measured on what is stored.

    In a fused module `part` names the lines (rows, or columns if it is transposed) that are W, and the module's
    adapter has the ranks of its projections one after the other, W^Q first. `source_sha256` and `base_sha256` are over
    the bytes of W (out, in) before and after, `adapter_sha256` over those of the module's A and then B; the numbers are
    those of `decompose.Numbers`; those of a grid are left out where there is none. `computed_on` tells what was unlike
    the first process, where several kinds of machines were allowed.
    """

    module: str
    tensor: str
    file: str
    role: str
    layer: Size
    stack: str
    shape: tuple[Side, Side]
    dtype: str
    base_dtype: str
    part: Part | None
    outputs: Side  # of the module: rows of B
    rule: str
    rank: Rank
    alpha: Rank
    scaling: Factor
    route: str
    rounding: str
    reconstruction_error: Amount
    survival: float | None
    survival_nearest: float | None
    gap: float | None
    dead: Size
    residual_error: Amount | None
    overlap: float
    motion: Amount
    sigma_max: Amount | None
    singular_values: tuple[Amount, ...]
    source_sha256: Digest
    base_sha256: Digest
    adapter_sha256: Digest
    grid_error: Amount | None = None
    plain_error: Amount | None = None
    rounds: Size | None = None
    computed_on: str | None = None


@dataclass(frozen=True)
class ExtraRecord:
    """One tensor that trains beside the factors: its name in the adapter, without PEFT's prefix; the source's `tensor`
    in `file` that it copies, or `rows` of it ([]: all); null where it was made anew. start: copy, zeros, ones, or
    normal with deviation `std`. sha256: over its bytes."""

    name: str
    tensor: str | None
    file: str | None
    shape: tuple[Side, ...]
    dtype: str
    start: str
    std: Amount
    rows: tuple[Size, ...]
    sha256: Digest


@dataclass(frozen=True)
class Manifest:
    """The whole file. `base` tells whether the folder holds a residual base, `offset` whether a frozen adapter stands
    for it (method `lora` needs neither); `motion` is by role the root mean square of the modules' (see
    `decompose.Numbers`); `files` maps every other file of the folder to its size and SHA-256; `moved` is what
    `relink` or `push` made the adapters name as their base since, by name and revision."""

    tool: Mapping[str, str]
    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    base: bool
    offset: bool
    motion: Mapping[str, float]
    modules: tuple[ModuleRecord, ...] = field(repr=False)
    files: Mapping[str, Mapping[str, Any]] = field(repr=False)
    notices: tuple[str, ...] = field(default=())
    extras: tuple[ExtraRecord, ...] = field(default=())
    moved: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Indented JSON that ends with the SHA-256 of itself without that last field."""
        body: dict[str, Any] = {"schema": SCHEMA, **{item.name: getattr(self, item.name) for item in fields(self)}}
        body["modules"] = [_as_json(module) for module in self.modules]
        body["settings"] = stated(self.settings)
        body["extras"] = [asdict(extra) for extra in self.extras]
        if self.moved is None:
            del body["moved"]
        body["sha256"] = sha256(_dump(body).encode())
        return _dump(body)


# Where they are null: without a grid, without groups, and with nothing to say of the machine.
_UNSAID = ("grid_error", "plain_error", "rounds", "grid", "group_size", "computed_on")


def _as_json(record: ModuleRecord) -> dict[str, Any]:
    return stated(asdict(record))


def stated(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those that say nothing: folders without them keep their bytes."""
    return {key: value for key, value in fields.items() if value is not None or key not in _UNSAID}


def read_manifest(folder: Path) -> Manifest:
    """Parse and check `ailora.json`; CheckpointError if there is none,
    VerificationError if it was changed or is of another version."""
    path = folder / MANIFEST
    _require_start(folder)
    raw = read_path(path, "Give a folder that `ailora-tools init` wrote (a list of biases has nothing to verify).",
                    limit=DOCUMENT_BYTES)  # fmt: skip
    return parse_manifest(raw, str(path))


def parse_manifest(raw: bytes, path: str) -> Manifest:
    """The manifest that a file called `path` holds; VerificationError as `read_manifest` raises it."""
    try:
        body = parse(raw, path)
    except CheckpointError as error:
        raise VerificationError(error.problem, RESTORE) from None
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema != SCHEMA:
        raise VerificationError(
            f"{path}: schema {quoted(schema)}, this version reads {SCHEMA}.",
            "Use the version of ailora-tools that wrote the folder.",
        )
    text = raw.decode().replace("\r\n", "\n")  # as Python writes lines on Windows
    recorded = body.pop("sha256", None)
    intact = recorded == sha256(_dump(body).encode())
    if not intact or text != _dump({**body, "sha256": recorded}):
        raise VerificationError(f"{path}: was changed after it was written: its own hash does not fit.", RESTORE)
    return _from_json(body, path)


def restated(
    raw: bytes, changed: Mapping[str, bytes], *, location: str | None = None, moved: Mapping[str, Any] | None = None
) -> bytes:
    """The text of a manifest that `read_manifest` has taken, for a folder in which files were written anew, with
    another name for its source, or with adapters that name another base."""
    body = parse(raw, MANIFEST)
    for name, data in changed.items():
        if name in body["files"]:
            body["files"][name] = {"size": len(data), "sha256": sha256(data)}
    if location is not None:
        body["source"]["location"] = location
    if moved is not None:
        body["moved"] = dict(moved)
    body.pop("sha256")
    return _dump({**body, "sha256": sha256(_dump(body).encode())}).encode()


def _require_start(folder: Path) -> None:
    """CheckpointError that says what the folder is, if it is something else that is known."""
    if (folder / MANIFEST).exists() or not folder.is_dir():
        return
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder}: an adapter, not a folder of `init`: it has no {MANIFEST}.",
            "Give the folder above it that `ailora-tools init` wrote.",
        )
    if (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}: a model, but not a folder of `init`: it has no {MANIFEST}.",
            f"`ailora-tools inspect {folder}` tells what is in it, `ailora-tools init {folder}` starts an adapter.",
        )


def fingerprint(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Size and header hash of every shard: cheap, and enough to tell another model or another export."""
    return {
        shard: {"size": header.file_size, "header_sha256": header.sha256}
        for shard, header in checkpoint.headers.items()
    }


RESTORE = "Restore it from a copy, or run init again: the same seed gives the same bytes."


def _dump(body: Mapping[str, Any]) -> str:
    return in_utf8(json_text(body, 1)) + "\n"


class _File(View):
    size: Size
    sha256: Digest


class _Shard(View):
    size: Size
    header_sha256: Digest


class _Source(View):
    location: str
    revision: str | None
    subfolder: str
    shards: dict[str, _Shard]


class _Moved(View):
    name: str
    revision: str | None


class _Settings(View):
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    dora: bool
    rslora: bool


class _Document(View):
    """Those parts of the file that stay mappings, typed."""

    tool: dict[str, str]
    source: _Source
    settings: _Settings
    files: dict[str, _File]
    moved: _Moved | None = None


def _from_json(body: dict[str, Any], path: str) -> Manifest:
    """The typed manifest; VerificationError for one that this tool cannot have written, whatever its hash says."""
    known = {item.name for item in fields(Manifest)} | {"schema"}
    if strange := [quoted(key) for key in body if key not in known]:
        raise VerificationError(f"{path}: has the unknown fields {listed(strange)}.", RESTORE)
    typed(body, path, _Document, RESTORE, error=VerificationError)
    manifest = typed(body, path, Manifest, RESTORE, error=VerificationError)
    outside = [quoted(name) for name in _names(manifest) if not stays_inside(name)]
    if outside:
        raise VerificationError(f"{path}: names files that lie outside the folder: {listed(outside)}.", RESTORE)
    faults = [fault for record in manifest.modules for fault in _impossible(record)]
    if faults:
        raise VerificationError(f"{path}: {listed(faults)}.", RESTORE)
    return manifest


def _names(manifest: Manifest) -> list[str]:
    extras = [record.file for record in manifest.extras if record.file is not None]
    return [*manifest.files, *(record.file for record in manifest.modules), *extras, *manifest.source["shards"]]


def _impossible(record: ModuleRecord) -> list[str]:
    """What in a record contradicts itself, so that arithmetic on it would fail."""
    name = quoted(record.module)
    faults = [] if record.rank <= min(record.shape) else [f"{name} has rank {record.rank}, above {min(record.shape)}"]
    if not is_role(record.role):
        faults.append(f"{name} has the unknown role {quoted(record.role)}")
    if record.rule not in RULES:
        faults.append(f"{name} has the unknown rule {quoted(record.rule)}")
    if record.shape[0] > record.outputs:
        faults.append(f"{name} has {record.shape[0]} rows of {record.outputs}")
    if record.part is not None and not _in_order(record.part, record):
        faults.append(f"{name} is said to lie in lines that cannot be")
    return faults


def _in_order(part: Part, record: ModuleRecord) -> bool:
    edges = [edge for run in part.runs for edge in run]
    return part.lines == record.shape[0] and edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= record.outputs


def module_record(entry: Mapping[str, Any]) -> ModuleRecord:
    """A record from its JSON form; VerificationError if fields are missing or are not what they must be."""
    return typed(entry, "a record of a module", ModuleRecord, RESTORE, error=VerificationError)
