"""`verify`: does a folder hold what it is said to hold? What it is, its files tell, and what is given beside it.

A folder of `init` makes its source again (`verify_start`); a merged model is its base with the adapter in it
(`verify_merged`); a converted adapter is what training changed (`verify_converted`); any other adapter fits its base
(`verify_adapter`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from ..adapters.folder import has_adapter
from ..adapters.peft import ADAPTER_CONFIG
from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.source import SourceOptions, user_path
from ..display.shown import shows_progress
from ..errors import OptionError
from ..output.names import ADAPTER_FOLDER, MANIFEST
from ..progress import Progress, heard
from ..team.team import Job, find_team
from .processes import Library
from .verification import ADAPTER, CONVERTED, MERGED, START, Verification
from .verify_adapter import verify_adapter
from .verify_converted import verify_converted
from .verify_given import Given, read_told
from .verify_merged import help_merged, verify_merged
from .verify_start import help_start, verify_start

__all__ = ["Verification", "verify"]


@shows_progress
def verify(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    init: str | Path | None = None,
    trained: str | Path | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[SourceOptions],
) -> Verification:
    """Check a folder, or a repository `org/name` on the Hub, which is read by ranges.

    A folder that `initialize` wrote is checked against its manifest and, if it can be found, its source: `source`, read
    with `options`, defaults to the folder that the manifest names. A merged model is checked against `base` (read with
    `options`) and `adapter`, a converted adapter against `init`, the folder of its start, and `trained`; a folder that
    `merge` or `convert` wrote names its own. With `base` alone an adapter is checked against that base. What a folder
    names on the Hub is only read if it is given.

    Raises CheckpointError for what is given and cannot be opened, VerificationError for a manifest that is changed,
    OptionError where something is missing; every other fault is a check that does not hold.

    Under torchrun all processes call this and share the work; the first one alone has the checks.

    >>> found = verify("start")
    >>> found.holds, [check.name for check in found.checks if not check.holds]
    (True, [])
    """
    progress = heard(progress)
    given = Given(source, base, adapter, init, trained)
    user_path(folder, "DIR")
    with find_team().job("verify") as job:
        if not job.leads:
            _help(job, folder, options)
            return Verification(Path(folder), None, ())
        library = Library(job)
        files = library.open(folder)
        what, told = _what(files, given)
        _require_fitting(what, given, files)
        if what == START:
            return verify_start(job, library, files, source, options, progress)
        if what == MERGED:
            return verify_merged(job, library, files, given, told, options, progress)
        if what == CONVERTED:
            return verify_converted(files, given, told, progress)
        return verify_adapter(files, given, told, options, progress)


def _help(job: Job, folder: str | Path, options: SourceOptions) -> None:
    """The part of all processes but the first."""
    for told in job.calls():
        library = Library(job, told["opened"])
        files = library.open(folder)
        if told["what"] == START:
            help_start(job, library, files, told, options)
        else:
            help_merged(job, library, files, told, options)


def _what(files: Files, given: Given) -> tuple[str, dict[str, Any]]:
    """What the folder is, and its ailora-result.json."""
    names = set(files.names())
    told = read_told(files)
    if given.adapter is not None:
        return MERGED, told
    if given.init is not None or given.trained is not None:
        return CONVERTED, told
    if MANIFEST in names:
        return START, told
    if told.get("verb") == "merge":
        return MERGED, told
    if not _is_adapter(files, names):
        return START, told  # whose reader says what it is
    recorded = told.get("verb") == "convert" and given.base is None and given.of_convert(told) is not None
    return (CONVERTED if recorded else ADAPTER), told


def _is_adapter(files: Files, names: set[str]) -> bool:
    """Whether an adapter is in it; the start of an init folder is a part of that."""
    if isinstance(files, LocalFiles):
        inside = files.root.name == ADAPTER_FOLDER and (files.root.parent / MANIFEST).is_file()
        return not inside and has_adapter(files.root)
    return ADAPTER_CONFIG in names


def _require_fitting(what: str, given: Given, files: Files) -> None:
    """OptionError for what is given and would not be looked at."""
    wanted = {
        START: ("source",), MERGED: ("base", "adapter"), CONVERTED: ("init", "trained"), ADAPTER: ("base",)
    }[what]  # fmt: skip
    idle = [f"--{name}" for name, value in vars(given).items() if value is not None and name not in wanted]
    if idle:
        told = {START: "a folder of init", MERGED: "a merged model", CONVERTED: "a converted adapter",
                ADAPTER: "an adapter"}[what]  # fmt: skip
        raise OptionError(
            f"{', '.join(idle)}: {files.origin.text} is {told}, which is checked against "
            f"{' and '.join(f'--{name}' for name in wanted)}.",
            "Give a merged model with --base and --adapter, a converted adapter with --init and --trained, an adapter "
            "with --base, a folder of init with --source.",
        )
