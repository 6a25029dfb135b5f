"""Whether an adapter is for this base, or for the one that `init` made of it or from which it was made; and whether
it comes from this start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..adapters.folder import Adapter, read_adapter
from ..adapters.peft import ADAPTER_WEIGHTS
from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.gate import stated_path
from ..checkpoint.header import quoted
from ..checkpoint.index import Checkpoint
from ..checkpoint.source import SCHEME
from ..errors import AiloraError, TargetError
from ..output.names import ADAPTER_FOLDER, MANIFEST, OFFSET_FOLDER
from ..output.provenance import Provenance, has_manifest, provenance
from ..output.spans import blocks


@dataclass(frozen=True)
class Mismatch:
    """An adapter and a base that do not belong together: the fact, what a merge of the two would be, how a comparison
    of them is to be read, and what to do instead of a merge."""

    fact: str
    merged: str
    compared: str
    hint: str


def require_right_base(checkpoint: Checkpoint, adapter: Adapter) -> list[str]:
    """TargetError for the wrong one of two: an adapter that started from the weights fits the residual base only, a
    plain LoRA the original only. Also where an ailora.json that should tell which it is cannot be read.

    A notice where the adapter names what cannot be looked at here; it is most likely a path of another machine.
    """
    wrong = find_mismatch(checkpoint, adapter)
    if wrong is not None:
        raise TargetError(f"{wrong.fact}: {wrong.merged}.", wrong.hint)
    return _unknown(checkpoint, adapter)


def about_base(checkpoint: Checkpoint, adapter: Adapter) -> list[str]:
    """The same for a comparison of the two, which is right for what it is: notices alone."""
    try:
        wrong = find_mismatch(checkpoint, adapter)
    except TargetError as error:
        return [error.problem.rstrip(".")]
    return _unknown(checkpoint, adapter) if wrong is None else [f"{wrong.fact}: {wrong.compared}"]


def find_mismatch(checkpoint: Checkpoint, adapter: Adapter) -> Mismatch | None:
    """By the folder that the adapter lies in, the base that it names, and what ailora.json says of both; TargetError
    where one of these is there and cannot be read."""
    beside, stated = _start_around(adapter), _stated(adapter)
    if beside is not None and (beside / OFFSET_FOLDER).is_dir():
        return _start_on_original(adapter)
    named, here = _folder(_path(stated)), _folder_of(checkpoint.files)
    if stated == checkpoint.location or (here is not None and here in (beside, named)):
        return None
    for folder in filter(None, (beside, named)):
        made = _told(LocalFiles(folder), checkpoint, adapter)
        if made is not None and made.base:
            return _trained_on_residual(folder, checkpoint, adapter)
    made = _told(checkpoint.files, checkpoint, adapter)
    if made is not None and made.base and _is_named(made.source, stated):
        return _for_original(made.source, checkpoint, adapter)
    return None


def _start_on_original(adapter: Adapter) -> Mismatch:
    return Mismatch(
        f"{adapter.location} is a start on the untouched original (--no-base)",
        "what `init` moved into it would count twice",
        "the start is a part of what is compared; `convert` what was trained to see the training alone",
        "Train it, with the frozen adapter beside it, and `ailora-tools convert` the result.",
    )


def _trained_on_residual(folder: Path, checkpoint: Checkpoint, adapter: Adapter) -> Mismatch:
    return Mismatch(
        f"{adapter.location} was trained on the residual base {folder}, not on {checkpoint.location}",
        "what `init` moved into it would count twice",
        f"what `init` moved is a part of what is compared; compare with {folder}, or `convert` it, to see the training "
        "alone",
        f"Merge it into {folder}, or `ailora-tools convert` it for the original first.",
    )


def _for_original(source: str, checkpoint: Checkpoint, adapter: Adapter) -> Mismatch:
    return Mismatch(
        f"{adapter.location} is for the original {source}; {checkpoint.location} is its residual base",
        "it lacks what `init` moved",
        f"its change is set in proportion to what is left there; compare with {source}",
        f"Merge it into {source}.",
    )


def start_beside(checkpoint: Checkpoint) -> Adapter | None:
    """The adapter that `init` wrote beside this base, None where there is none on this machine; TargetError for one
    that cannot be read."""
    folder = _folder_of(checkpoint.files)
    if folder is None or not has_manifest(checkpoint.files) or not (folder / ADAPTER_FOLDER).is_dir():
        return None
    try:
        return read_adapter(LocalFiles(folder / ADAPTER_FOLDER))
    except AiloraError as error:
        raise TargetError(
            f"{error.problem} It is the start that what was trained is held against, to see whether a part was lost.",
            f"Restore it from a copy, or take {folder / ADAPTER_FOLDER} away to do without.",
        ) from None


def require_right_start(trained: Adapter, initial: Adapter) -> None:
    """TargetError where the base that `trained` names lies beside another start than `initial`: two starts of one model
    may be so much alike that their numbers do not tell them apart."""
    named = _folder(_path(_stated(trained)))
    if named is None or not has_manifest(LocalFiles(named)) or not (named / ADAPTER_FOLDER / ADAPTER_WEIGHTS).is_file():
        return
    if not _same_weights(LocalFiles(named / ADAPTER_FOLDER), initial.files):
        raise TargetError(
            f"{trained.location} was trained on {named}, the residual base of another start than {initial.location}: "
            "what it started from is not what would be subtracted.",
            f"Give that folder: --init {named}.",
        )


def _same_weights(one: Files, other: Files) -> bool:
    """Byte for byte, a block at a time: adapters of large models take gigabytes."""
    size = one.size(ADAPTER_WEIGHTS)
    return size == other.size(ADAPTER_WEIGHTS) and all(
        one.read(ADAPTER_WEIGHTS, *block) == other.read(ADAPTER_WEIGHTS, *block) for block in blocks(0, size)
    )


def _told(files: Files, checkpoint: Checkpoint, adapter: Adapter) -> Provenance | None:
    try:
        return provenance(files)
    except AiloraError as error:
        relink = f"ailora-tools relink {adapter.location} --base {checkpoint.location}"
        raise TargetError(
            f"{error.problem} Without it there is no telling whether {adapter.location} is for {checkpoint.location}: "
            "what `init` moved could count twice, or be missing.",
            f"{error.hint} An adapter that is for that base may say so: {relink}",
        ) from None


def _unknown(checkpoint: Checkpoint, adapter: Adapter) -> list[str]:
    """Of a base that is named and cannot be looked at."""
    stated = _stated(adapter)
    if not stated or stated == checkpoint.location or _is_known(_path(stated)):
        return []
    return [
        f"{adapter.location} names {quoted(stated)} as its base, which cannot be looked at here: if that is a residual "
        f"base and not {checkpoint.location}, what `init` moved counts twice"
    ]


def _stated(adapter: Adapter) -> str:
    return str(adapter.config.get("base_model_name_or_path") or "")


def _path(stated: str) -> Path | None:
    return stated_path(stated) if stated else None


def _start_around(adapter: Adapter) -> Path | None:
    """The folder of `init`, of its own adapter."""
    path = adapter.files.origin.path
    return path.resolve().parent if path is not None and path.resolve().name == ADAPTER_FOLDER else None


def _folder_of(files: Files) -> Path | None:
    """Where the weights lie on this machine, also where one of their files was given."""
    return files.root.resolve() if isinstance(files, LocalFiles) else None


def _folder(path: Path | None) -> Path | None:
    """The folder at `path`, or around the file there; None where nothing is."""
    if path is None or not path.exists():
        return None
    return path if path.is_dir() else path.parent


def _is_named(original: str, stated: str) -> bool:
    """Whether an adapter names `original` as its base: by its id, its path, or a file of it."""
    path = _path(stated)
    if original.removeprefix(SCHEME) in (stated, str(path)):
        return True
    folder = None if original.startswith(SCHEME) else _folder(_path(original))
    return folder is not None and folder == _folder(path)


def _is_known(path: Path | None) -> bool:
    """Whether what a file names is there to be looked at, or certainly not there."""
    try:
        return path is not None and bool((path / MANIFEST).lstat())
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
