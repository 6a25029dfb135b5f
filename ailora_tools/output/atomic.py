"""A folder that appears under its final name only when it is complete, and the one run that may make it.

A run works in a folder beside its output, `NAME.partial` or, where something of that name is there already, a name of
its own. `owner.json` in it says which tool, verb and job made it; only such folders are ever gone on with or removed.
A folder that is replaced is set aside inside it, and removed when the new one stands. A lock beside the output keeps
other runs away from all of this (see `claim`).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..checkpoint.transfer import ExhaustedError
from ..errors import AiloraError, OutputError, UnfinishedError
from .claim import beside, claimed
from .place import require_space, written_bytes
from .platform import BINARY, rename_new, write_all
from .replaced import require_ours
from .spans import sync_file, sync_tree, write_new

OWNER, JOURNAL, TREE, ASIDE = "owner.json", "journal.jsonl", "tree", "replaced"
_TOOL = "ailora-tools"


@dataclass(frozen=True)
class Output:
    """What is to appear where: the folder, the verb that makes it, and what the user allows it to replace.

    job: JSON that describes everything the bytes depend on, None for work that is too short to be gone on with.
    force: also replace a folder of ours in which others have put files. nbytes: what will be written, about.
    """

    final: Path
    verb: str
    job: Mapping[str, Any] | None = None
    overwrite: bool = False
    resume: bool = False
    force: bool = False
    nbytes: int = 0

    @property
    def resumable(self) -> bool:
        return self.job is not None


class WorkFolder:
    """The unfinished folder: `tree` becomes the final folder, `done` is what an earlier run finished."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree, self.aside = root, root / TREE, root / ASIDE
        self.owner: Mapping[str, Any] = json.loads((root / OWNER).read_text(encoding="utf-8"))
        self.done = _read_journal(root / JOURNAL)
        self._journal: int | None = None

    def open(self) -> None:
        """Begin to write: the journal is written anew, because an interruption may have cut its last line."""
        self.tree.mkdir(exist_ok=True)
        journal = self.root / JOURNAL
        fresh = journal.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        write_new(fresh, "".join(_line(step) for step in self.done).encode())
        fresh.replace(journal)
        sync_file(self.root)
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | BINARY)

    def record(self, step: Mapping[str, Any]) -> None:
        """Keep what was just finished; call it when its bytes are written."""
        assert self._journal is not None
        write_all(self._journal, _line(step).encode())

    def agree(self, kind: str, value: Any) -> None:
        """Record what only the running work knows of its bytes; OutputError where an earlier run had another value."""
        before = self.finished(kind)
        if before and before[0] != _plain(value):
            raise OutputError(
                f"{self.root}: the unfinished run had {kind} {before[0]}, this one has {_plain(value)}.",
                "Go on where it ran (same machine, threads and versions), or give --overwrite to start again.",
            )
        if not before:
            self.record({kind: value})

    def finished(self, kind: str) -> list[Any]:
        """What an earlier run recorded under `kind`."""
        return [step[kind] for step in self.done if kind in step]

    def close(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None


@contextmanager
def building(output: Output, unchanged: Callable[[], None] = lambda: None) -> Iterator[WorkFolder]:
    """Work on `output`; on leaving without an error, move it to its place.

    `unchanged` is asked before that and raises where a source is no longer what it was. Raises OutputError if something
    is in the way, if another run writes there, if there is no room; UnfinishedError for what is no fault of the input,
    with the work so far kept.
    """
    with _prepared(output) as work:
        try:
            yield work
            work.close()
            unchanged()
            _publish(work, output)
        except BaseException as error:
            work.close()
            _after(error, work, output)
            raise


@contextmanager
def making(output: Output, unchanged: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """The folder to fill, for work that is too short to be gone on with: after any failure nothing of it is left."""
    with building(output, unchanged) as work:
        yield work.tree


@contextmanager
def _prepared(output: Output) -> Iterator[WorkFolder]:
    final = output.final
    with ExitStack() as stack:
        try:
            made = _make_parents(final)
            stack.callback(_remove_empty, made)
            stack.enter_context(claimed(final, output.verb))
            work = _begin(output)
            work.open()
        except OSError as error:
            raise _unwritable(error, final) from None
        yield work


def _begin(output: Output) -> WorkFolder:
    """The folder to work in: an unfinished one that is gone on with, or a new one."""
    unfinished = _recovered(output.final)
    require_free(output)
    for work in unfinished:
        if _goes_on(work, output):
            require_space(output.final, output.nbytes - written_bytes(work.root))
            return work
        shutil.rmtree(work.root)
    require_space(output.final, output.nbytes)
    return WorkFolder(_create(output))


def _recovered(final: Path) -> list[WorkFolder]:
    """Unfinished folders of earlier runs for this output, none of which is running any more: it would hold the lock.

    Where a run died after its last step the rest is done: a replaced folder goes back if nothing took its place, and
    what has been published needs no work folder.
    """
    left = []
    for work in _find(final):
        published = not work.tree.exists() and final.exists()
        if work.aside.exists() and not os.path.lexists(final):
            work.aside.rename(final)
        if published:
            shutil.rmtree(work.root)
        else:
            left.append(work)
    return left


def _find(final: Path) -> list[WorkFolder]:
    """Folders beside `final` that say they are the work of this tool on it."""
    found = []
    for entry in sorted(final.parent.glob("*.partial")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            work = WorkFolder(entry)
            if work.owner["tool"] == _TOOL and work.owner["final"] == final.name and not entry.is_symlink():
                found.append(work)
    return found


def _goes_on(work: WorkFolder, output: Output) -> bool:
    """Whether this run takes over; OutputError where it may neither do that nor start again."""
    verb, before = str(work.owner.get("verb")), work.owner.get("job")
    if output.resume:
        if verb != output.verb or before is None or output.job is None:
            raise OutputError(
                f"{work.root}: an unfinished `{verb}` is here, which `{output.verb}` cannot go on with.",
                "Give --overwrite to remove it and start again, or choose another -o.",
            )
        changed = [key for key in output.job if before.get(key) != _plain(output.job[key])]
        if changed or before.keys() != output.job.keys():
            raise OutputError(
                f"{work.root}: the unfinished run differs in {', '.join(changed) or 'its format'}.",
                "Give the same model and options to go on with it, or --overwrite to start again.",
            )
        return True
    if before is not None and not output.overwrite:
        raise OutputError(
            f"{work.root}: an unfinished `{verb}` is here.",
            "Use --resume to go on with it, or --overwrite to start again."
            if verb == output.verb
            else "Use --overwrite to remove it, or choose another -o.",
        )
    return False


def _create(output: Output) -> Path:
    """A new folder that says whose it is from the moment it has a name that counts."""
    final = output.final
    owner = {"tool": _TOOL, "verb": output.verb, "final": final.name, "job": output.job, "host": socket.gethostname(),
             "pid": os.getpid()}  # fmt: skip
    fresh = beside(final, f".{token_hex(4)}.partial", ".")
    fresh.mkdir()
    try:
        write_new(fresh / OWNER, _line(owner).encode())
        sync_file(fresh)
        plain = beside(final, ".partial")
        root = plain if rename_new(fresh, plain) else fresh
        sync_file(final.parent)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return root


def _publish(work: WorkFolder, output: Output) -> None:
    """Swap the finished tree in; what it replaces goes into the work folder first, and away last."""
    final = output.final
    sync_tree(work.tree)
    if output.overwrite and os.path.lexists(final):
        require_free(output)  # again: it may have changed during the work
        final.rename(work.aside)
    if not rename_new(work.tree, final):
        raise OutputError(f"{final}: appeared while the work went on, and is left alone.", _again(work))
    sync_file(final.parent)
    shutil.rmtree(work.root, ignore_errors=True)  # what is left of it, the next run for this output removes


def require_possible(output: Output) -> None:
    """What a dry run can know: the output is free or may be replaced, and there is room. OutputError."""
    try:
        require_free(output)
        done = max((written_bytes(work.root) for work in _find(output.final)), default=0) if output.resume else 0
        require_space(output.final, output.nbytes - done)
    except OSError as error:
        raise _unwritable(error, output.final) from None


def require_free(output: Output) -> None:
    """Nothing is in the way, or what is there may be replaced; OutputError."""
    final = output.final
    if not os.path.lexists(final):
        return
    if not output.overwrite:
        raise OutputError(f"{final}: already exists.", "Use --overwrite to replace it, or choose another -o.")
    require_ours(final, output.verb, output.force)


def _after(error: BaseException, work: WorkFolder, output: Output) -> None:
    """Keep what can be gone on with, and say so; remove what bad input has made worthless."""
    worthless = isinstance(error, AiloraError) and not isinstance(error, OutputError | ExhaustedError)
    if not work.tree.exists():
        if isinstance(error, OSError):
            told = f"is complete, but the disk did not confirm the last step: {error.strerror or error}"
            raise OutputError(f"{output.final}: {told}.", "Run `ailora-tools verify`, or copy it elsewhere.") from None
        return
    if worthless or not output.resumable:
        if work.aside.exists() and not os.path.lexists(output.final):
            work.aside.rename(output.final)
        shutil.rmtree(work.root, ignore_errors=True)
    if isinstance(error, OSError):
        raise _failed_write(error, work, output) from None
    if output.resumable and isinstance(error, Exception) and not isinstance(error, AiloraError):
        first = str(error).splitlines()[0] if str(error) else "no message"
        raise UnfinishedError(f"{output.final}: {type(error).__name__}: {first}", _again(work)) from error


def _again(work: WorkFolder) -> str:
    return f"What is finished is kept in {work.root}: run again with --resume, or delete it to give up."


def _failed_write(error: OSError, work: WorkFolder, output: Output) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    told = f"cannot write: {error.strerror or error} ({error.filename or work.root})"
    what = "the disk is full" if full else told
    return OutputError(
        f"{output.final}: {what}.", _again(work) if output.resumable else "Make room, or choose another -o."
    )


def _unwritable(error: OSError, final: Path) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "the disk is full" if full else f"cannot write here: {error.strerror or error}"
    return OutputError(f"{final.parent}: {what}.", "Make room, or choose another -o." if full else "Choose another -o.")


def _make_parents(final: Path) -> list[Path]:
    """The folders that had to be made, the innermost first."""
    missing = [parent for parent in final.parents if not parent.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _read_journal(path: Path) -> list[dict[str, Any]]:
    steps = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:  # the line that the interruption cut
            break
    return steps


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
