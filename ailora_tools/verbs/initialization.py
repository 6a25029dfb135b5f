"""What `init` gives back: the operation, where its results lie, and their manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..output.manifest import Manifest
from ..output.names import ADAPTER_FOLDER, OFFSET_FOLDER
from ..surgery.describe import adapter_name
from ..surgery.operation import Operation
from .result import Result


@dataclass(frozen=True, repr=False)
class Initialization(Result):
    """The planned operation, where its results lie, and their manifest (None after a dry run)."""

    _columns = ("module", "role", "rule", "rank", "gap", "survival", "reconstruction_error", "motion")

    operation: Operation
    manifest: Manifest | None

    @property
    def folder(self) -> Path:
        """What to load as the base model (with `no_base` or method `lora`, only adapters and manifest are in it)."""
        return self.operation.folder

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER_FOLDER

    @property
    def offset(self) -> Path:
        """The frozen adapter, with `no_base`."""
        return self.folder / OFFSET_FOLDER

    def told(self) -> str:
        """By which method, of how many matrices, and where it lies."""
        if self.manifest is None:
            return f"of {self.operation.checkpoint.location}: a dry run, nothing written to {self.folder}"
        worst = max(record.reconstruction_error for record in self.manifest.modules)
        method, count = self.operation.settings.method, len(self.manifest.modules)
        return f"by {method}: {count} matrices, reconstruction error at most {worst:.1e}, {self.folder}"

    def rows(self) -> list[dict[str, Any]]:
        """One record a matrix, as in ailora.json; none after a dry run."""
        return [asdict(record) for record in self.manifest.modules] if self.manifest else []

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: where things lie, the bytes, and every module with its numbers."""
        modules = self.manifest.modules if self.manifest else ()
        return {
            "folder": str(self.folder),
            "adapter": str(self.adapter),
            "dry_run": self.manifest is None,
            "bytes_to_write": self.operation.nbytes,
            "settings": asdict(self.operation.settings),
            "extras": [adapter_name(extra) for extra in self.operation.extras],
            "planned": [carrier.stored.name for carrier in self.operation.plan.carriers],
            "modules": [asdict(record) for record in modules],
            "notices": list(self.operation.plan.notices),
        }
