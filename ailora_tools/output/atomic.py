"""A folder that appears under its final name only when it is complete.

The work happens in a sibling, `NAME.partial`. A journal in it (one JSON line per finished step) lets an
interrupted run go on. Bad input removes the sibling again; an interruption, a full disk or a lost connection leaves it.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.files import Origin
from ..checkpoint.transfer import ExhaustedError
from ..errors import AiloraError, OutputError
from .names import MANIFEST, RESULT
from .spans import sync_file

JOURNAL = "journal.jsonl"


class WorkFolder:
    """The unfinished folder: `tree` becomes the final folder, `done` is what an earlier run finished."""

    def __init__(self, final: Path, job: Mapping[str, Any], resume: bool) -> None:
        self.root = final.with_name(final.name + ".partial")
        self.tree = self.root / "tree"
        self.tree.mkdir(parents=True, exist_ok=True)
        journal = self.root / JOURNAL
        self.done = _read_journal(journal, job) if resume else []
        # Written anew, because the interruption may have cut its last line.
        fresh = journal.with_suffix(".new")
        fresh.write_text("".join(json.dumps(step) + "\n" for step in [{"job": job}, *self.done]), encoding="utf-8")
        fresh.replace(journal)
        self._journal = open(journal, "a", encoding="utf-8")  # noqa: SIM115

    def record(self, step: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(step) + "\n")
        self._journal.flush()

    def finished(self, kind: str) -> list[Any]:
        """What an earlier run recorded under `kind`."""
        return [step[kind] for step in self.done if kind in step]

    def close(self) -> None:
        self._journal.close()


@contextmanager
def making(final: Path, *, overwrite: bool) -> Iterator[Path]:
    """The folder to fill, for work that is too short to be resumed: after any failure nothing of it is left.

    The caller writes RESULT into it. Raises OutputError if `final` is in the way or the disk is full.
    """
    partial = final.with_name(final.name + ".partial")
    _require_free(final, partial, overwrite, True, RESULT)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "tree").mkdir(parents=True)
        yield partial / "tree"
        _publish(partial / "tree", final)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"cannot write: {error.strerror}"
        raise OutputError(f"{final}: {what}.", "Make room, or choose another -o.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def building(
    final: Path, job: Mapping[str, Any], *, overwrite: bool, resume: bool, marker: str = MANIFEST
) -> Iterator[WorkFolder]:
    """Work in a sibling of `final`; on leaving without an error, move it to its place.

    `job` must be JSON and describe everything that the bytes depend on: a resumed run must match it.
    An old folder is replaced only if `marker` is in it. Raises OutputError if `final` or an unfinished run is in
    the way, or if the disk is full.
    """
    partial = final.with_name(final.name + ".partial")
    _require_free(final, partial, overwrite, resume, marker)
    if partial.exists() and not resume:
        shutil.rmtree(partial)
    try:
        work = WorkFolder(final, job, resume)
    except OSError as error:
        raise OutputError(f"{final.parent}: cannot write here: {error.strerror}.", "Choose another -o.") from None
    try:
        yield work
        work.close()
        _publish(work.tree, final)
        shutil.rmtree(partial)
    except OSError as error:
        work.close()
        raise _write_error(error, final, partial) from None
    except (OutputError, ExhaustedError):
        work.close()
        raise
    except Exception:
        work.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_outside(final: Path, origin: Origin) -> None:
    """The output must not be the source, lie in it, or contain it."""
    if origin.path is None:
        return
    out, source = final.resolve(), origin.path
    src = source.resolve()
    if out == src:
        raise OutputError(f"{final}: the output folder is the source itself.", "Choose another folder with -o.")
    if src in out.parents:
        raise OutputError(f"{final}: the output folder lies inside the source {source}.", "Choose another -o.")
    if out in src.parents:
        raise OutputError(f"{final}: the source {source} lies inside the output folder.", "Choose another -o.")


def require_space(folder: Path, nbytes: int) -> None:
    """Refuse before the first byte is written where there is clearly no room."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise OutputError(
            f"{folder}: {nbytes / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free.",
            "Free some space, or choose another disk with -o.",
        )


def _require_free(final: Path, partial: Path, overwrite: bool, resume: bool, marker: str) -> None:
    if final.exists() or final.is_symlink():
        if not overwrite:
            raise OutputError(f"{final}: already exists.", "Use --overwrite to replace it, or choose another -o.")
        if not (final / marker).is_file() and not (final.is_dir() and not any(final.iterdir())):
            raise OutputError(
                f"{final}: was not written by ailora-tools (no {marker} in it), so it is not replaced.",
                "Remove it yourself, or choose another -o.",
            )
    if partial.exists() and not (resume or overwrite):
        raise OutputError(
            f"{partial}: an unfinished run is here.", "Use --resume to go on with it, or --overwrite to start again."
        )


def _read_journal(path: Path, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    steps = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:  # the line that the interruption cut
            break
    if steps and steps[0].get("job") != json.loads(json.dumps(job)):
        changed = [key for key in job if steps[0].get("job", {}).get(key) != json.loads(json.dumps(job[key]))]
        raise OutputError(
            f"{path.parent}: the unfinished run differs in {', '.join(changed) or 'its format'}.",
            "Give the same model and options to resume it, or --overwrite to start again.",
        )
    return steps[1:]


def _publish(tree: Path, final: Path) -> None:
    """Swap the finished tree in; an old folder of ours is set aside first and removed last."""
    old = final.with_name(final.name + ".old")
    if final.exists():
        final.rename(old)
    tree.rename(final)
    sync_file(final.parent)
    if old.exists():
        shutil.rmtree(old)


def _write_error(error: OSError, final: Path, partial: Path) -> AiloraError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{final}: the disk is full.",
            f"Make room and run again with --resume, or delete {partial} to give up.",
        )
    return OutputError(f"{final}: cannot write: {error.strerror} ({error.filename or partial}).")
