"""A folder that appears under its final name only when it is complete, and the one run that may make it.

The run works beside its output (see `work`) under a lock that keeps other runs away (see `claim`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.transfer import ExhaustedError
from ..errors import AiloraError, OutputError, UnfinishedError
from .claim import claimed
from .place import require_space, written_bytes
from .platform import rename_new
from .replaced import require_ours
from .spans import sync_file, sync_tree
from .work import WorkFolder, create, find, plain, recovered


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
    unfinished = recovered(output.final)
    require_free(output)
    for work in unfinished:
        if _goes_on(work, output):
            require_space(output.final, output.nbytes - written_bytes(work.root))
            return work
        work.remove()
    require_space(output.final, output.nbytes)
    return create(output.final, output.verb, output.job)


def _goes_on(work: WorkFolder, output: Output) -> bool:
    """Whether this run takes over; OutputError where it may neither do that nor start again."""
    verb, before = str(work.owner.get("verb")), work.owner.get("job")
    if output.resume:
        if verb != output.verb or before is None or output.job is None:
            raise OutputError(
                f"{work.root}: an unfinished `{verb}` is here, which `{output.verb}` cannot go on with.",
                "Give --overwrite to remove it and start again, or choose another -o.",
            )
        changed = [key for key in output.job if before.get(key) != plain(output.job[key])]
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
    with suppress(OSError):  # what is left of it, the next run for this output removes
        work.remove()


def require_possible(output: Output) -> None:
    """What a dry run can know: the output is free or may be replaced, and there is room. OutputError."""
    try:
        require_free(output)
        done = max((written_bytes(work.root) for work in find(output.final)), default=0) if output.resume else 0
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
    worthless = isinstance(error, AiloraError) and not isinstance(error, OutputError | ExhaustedError | UnfinishedError)
    if not work.tree.exists():
        if isinstance(error, OSError):
            told = f"is complete, but the disk did not confirm the last step: {error.strerror or error}"
            raise OutputError(f"{output.final}: {told}.", "Run `ailora-tools verify`, or copy it elsewhere.") from None
        return
    if worthless or not output.resumable:
        with suppress(OSError):
            work.put_back(output.final)
            work.remove()
    if isinstance(error, OSError):
        raise _failed_write(error, work, output) from None
    if isinstance(error, Exception) and not isinstance(error, AiloraError):
        first = str(error).splitlines()[0] if str(error) else "no message"
        hint = _again(work) if output.resumable else "Nothing of this run is left. Report it if it recurs."
        raise UnfinishedError(f"{output.final}: {type(error).__name__}: {first}", hint) from error


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
