"""ailora.json: what was done to which tensor, with the numbers, and a hash of everything in the folder.

No time stamps: the same input, options and seed give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..checkpoint.index import Checkpoint
from ..errors import CheckpointError, VerificationError
from ..matrices.layouts import Part
from .names import MANIFEST
from .spans import in_utf8, sha256

SCHEMA = 5


@dataclass(frozen=True)
class ModuleRecord:
    """One projection: where it lies, what was asked, and the numbers measured on what is stored.

    In a fused module `part` names the lines (rows, or columns if it is transposed) that are W, and the module's
    adapter has the ranks of its projections one after the other, W^Q first. `source_sha256` and `base_sha256` are over
    the bytes of W (out, in) before and after, `adapter_sha256` over those of the module's A and then B; the numbers are
    those of `decompose.Numbers`.
    """

    module: str
    tensor: str
    file: str
    role: str
    layer: int
    stack: str
    shape: tuple[int, int]
    dtype: str
    base_dtype: str
    part: Part | None
    outputs: int  # of the module: rows of B
    rule: str
    rank: int
    alpha: int
    scaling: float
    route: str
    rounding: str
    reconstruction_error: float
    survival: float | None
    survival_nearest: float | None
    gap: float | None
    dead: int
    residual_error: float | None
    overlap: float
    motion: float
    sigma_max: float | None
    singular_values: tuple[float, ...]
    source_sha256: str
    base_sha256: str
    adapter_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole file. `base` tells whether the folder holds a residual base, `offset` whether a frozen adapter stands
    for it (method `lora` needs neither); `motion` is by role the root mean square of the modules' (see
    `decompose.Numbers`); `files` maps every other file of the folder to its size and SHA-256."""

    tool: Mapping[str, str]
    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    base: bool
    offset: bool
    motion: Mapping[str, float]
    modules: Sequence[ModuleRecord]
    files: Mapping[str, Mapping[str, Any]]
    notices: Sequence[str] = field(default=())

    def to_json(self) -> str:
        """Indented JSON that ends with the SHA-256 of itself without that last field."""
        body: dict[str, Any] = {"schema": SCHEMA, **{item.name: getattr(self, item.name) for item in fields(self)}}
        body["modules"] = [asdict(module) for module in self.modules]
        body["sha256"] = sha256(_dump(body).encode())
        return _dump(body)


def read_manifest(folder: Path) -> Manifest:
    """Parse and check `ailora.json`; CheckpointError if there is none,
    VerificationError if it was changed or is of another version."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        body = json.loads(text)
        if body.get("schema") != SCHEMA:
            raise VerificationError(
                f"{path}: schema {body.get('schema')!r}, this version reads {SCHEMA}.",
                "Use the version of ailora-tools that wrote the folder.",
            )
        recorded = body.pop("sha256", None)
        intact = recorded == sha256(_dump(body).encode())
        if not intact or text != _dump({**body, "sha256": recorded}):
            raise VerificationError(f"{path}: was changed after it was written: its own hash does not fit.", _RESTORE)
        return _from_json(body)
    except OSError as error:
        hint = "Give a folder that `ailora-tools init` wrote (a list of biases has nothing to verify)."
        raise CheckpointError(f"{path}: {error.strerror}.", hint) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise VerificationError(f"{path}: cannot be read ({error}).", _RESTORE) from None


def fingerprint(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Size and header hash of every shard: cheap, and enough to tell another model or another export."""
    return {
        shard: {"size": header.file_size, "header_sha256": header.sha256}
        for shard, header in checkpoint.headers.items()
    }


_RESTORE = "Restore it from a copy, or run init again: the same seed gives the same bytes."


def _dump(body: Mapping[str, Any]) -> str:
    return in_utf8(json.dumps(body, indent=1, ensure_ascii=False)) + "\n"


def _from_json(body: dict[str, Any]) -> Manifest:
    body.pop("schema")
    modules = tuple(module_record(entry) for entry in body.pop("modules"))
    return Manifest(modules=modules, **body)


def module_record(entry: Mapping[str, Any]) -> ModuleRecord:
    """A record from its JSON form; TypeError or KeyError if fields are missing or unknown."""
    shape, values, part = tuple(entry["shape"]), tuple(entry["singular_values"]), entry["part"]
    if part is not None:
        part = Part(**{**part, "runs": tuple(tuple(run) for run in part["runs"])})
    return ModuleRecord(**{**entry, "shape": shape, "singular_values": values, "part": part})
