"""What `verify` found: check by check, and of merged and converted models matrix by matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..output.manifest import Manifest
from ..proof.folder import Check
from .result import Result

START, MERGED, CONVERTED, ADAPTER = "start", "merged", "converted", "adapter"


@dataclass(frozen=True, repr=False)
class Verification(Result):
    """The checks in order. what: "start" for a folder of `initialize`, "merged", "converted" or "adapter". source: what
    it was compared with, None if nothing was at hand. manifest: that of a start. matrices: of merged and converted
    models, what was found of each, as `to_json` has it."""

    _held, _columns = "checks", ("name", "holds", "detail")

    folder: Path | str
    source: str | None
    checks: tuple[Check, ...]
    manifest: Manifest | None = None
    what: str = START
    matrices: tuple[Mapping[str, Any], ...] = ()

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    @property
    def basis(self) -> str:
        """What it was compared with."""
        return self.source or ("hashes alone" if self.what == START else "itself alone")

    def told(self) -> str:
        """Whether it holds, and what does not."""
        broken = [check.name for check in self.checks if not check.holds]
        verdict = f"does not hold ({', '.join(broken)})" if broken else "holds"
        return f"of {self.folder}: {verdict}, compared with {self.basis}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = {} if self.what == START else {"matrices": [dict(one) for one in self.matrices]}
        return {
            "folder": str(self.folder),
            "what": self.what,
            "holds": self.holds,
            "compared_with": self.basis,
            "checks": [asdict(check) for check in self.checks],
            **found,
        }
