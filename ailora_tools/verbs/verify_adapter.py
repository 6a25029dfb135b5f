"""`verify` of an adapter: does it fit its base, key by key?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.folder import Adapter, adapter_in
from ..checkpoint.files import Files
from ..checkpoint.gate import stated_path
from ..checkpoint.index import Checkpoint, open_checkpoint
from ..checkpoint.source import SourceOptions
from ..errors import TargetError
from ..matrices.quantisation import quantization_config
from ..matrices.restore import restore
from ..progress import Progress
from ..proof.adapter import bindings, check_keys, check_recorded, checks_against, checks_alone
from ..proof.folder import Check
from ..proof.merged import check_listed
from .right_base import require_right_base
from .verification import ADAPTER, Verification
from .verify_given import Given


def verify_adapter(
    files: Files, given: Given, told: Mapping[str, Any], options: SourceOptions, progress: Progress
) -> Verification:
    """`told` is its ailora-result.json, {} without one. Only headers of the base are read."""
    adapter = adapter_in(files)
    where = files.origin.path or files.origin.text
    checks = [check_listed(files, told)] if told else []
    checks += [check_recorded(adapter, told)] if told.get("verb") == "convert" else []
    base = given.base or _own_base(adapter)
    if base is None:
        progress.notice(_alone(adapter, files))
        return Verification(where, None, (*checks, *checks_alone(adapter)), None, ADAPTER)
    stored = open_checkpoint(base, **options)
    plain = restore(stored, _WIDE if quantization_config(stored.config) else None).plain
    checks.append(_right_base(stored, adapter))
    found = bindings(adapter, plain)
    checks += [check_keys(found), *checks_against(adapter, plain)]
    return Verification(
        where, stored.location, tuple(checks), None, ADAPTER, tuple(one.to_json() for one in found)
    )  # fmt: skip


_WIDE = "float32"


def _own_base(adapter: Adapter) -> Path | None:
    """The base that its config names, where that is a folder here."""
    named = str(adapter.config.get("base_model_name_or_path") or "")
    path = stated_path(named) if Path(named).is_absolute() and not named.startswith(("//", "\\\\")) else None
    return path if path is not None and path.is_dir() else None


def _alone(adapter: Adapter, files: Files) -> str:
    named = adapter.config.get("base_model_name_or_path")
    known = str(named) if isinstance(named, str) and named else "BASE"
    return f"compared with no base; to check it against one: verify {files.origin.text} --base {known}"


def _right_base(stored: Checkpoint, adapter: Adapter) -> Check:
    try:
        told = require_right_base(stored, adapter)
    except TargetError as error:
        return Check("base", False, error.problem)
    return Check("base", True, "; ".join(told) or "not the residual base of another adapter, nor the original of one")
