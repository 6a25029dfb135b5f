"""`verify` of a converted adapter: is the plain LoRA what training changed?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.folder import adapter_in, open_adapter
from ..checkpoint.files import Files
from ..errors import OptionError, TargetError
from ..output.manifest import read_manifest
from ..output.names import ADAPTER_FOLDER
from ..progress import Progress
from ..proof.folder import Check
from ..proof.merged import check_listed
from .start_folder import start_folder
from .verification import CONVERTED, Verification
from .verify_given import Given, adapter_of


def verify_converted(files: Files, given: Given, told: Mapping[str, Any], progress: Progress) -> Verification:
    """`told` is its ailora-result.json, {} without one. Adapters are small: the first process does all of it."""
    from ..checkpoint.arithmetic import ieee
    from ..proof import converted

    both = given.of_convert(told)
    if both is None:
        raise OptionError(
            f"{files.origin.text}: a converted adapter is checked against its start and its trained adapter; one of "
            "them is not known.",
            f"ailora-tools verify {files.origin.text} --init DIR --trained TRAINED",
        )
    root, plain = start_folder(both[0]), adapter_in(files)
    manifest, initial, trained = read_manifest(root), open_adapter(root / ADAPTER_FOLDER), adapter_of(both[1])
    checks, found = [check_listed(files, told)] if told else [], []
    basis = f"{root} and {trained.location}"
    try:
        job = converted.matched(plain, initial, trained, manifest)
    except TargetError as error:
        return Verification(_where(files), basis, (*checks, Check("modules", False, error.problem)), None, CONVERTED)
    recorded = _recorded(told)
    progress.start("Checking", len(job.plain_names), 0)
    with ieee():
        for module in converted.look(job, recorded):
            found.append(module)
            progress.advance(module.module)
        checks += [converted.check_modules(job), converted.check_base(job, manifest), converted.check_kept(job)]
    checks.append(converted.check_change(found, recorded))
    return Verification(
        _where(files), basis, tuple(checks), None, CONVERTED, tuple(one.to_json() for one in found)
    )  # fmt: skip


def _recorded(told: Mapping[str, Any]) -> dict[str, float]:
    """Module -> the error that `convert` recorded."""
    records = told.get("modules", ()) if told.get("verb") == "convert" else ()
    return {record["module"]: record["error"] for record in records if {"module", "error"} <= record.keys()}


def _where(files: Files) -> Path | str:
    return files.origin.path or files.origin.text
