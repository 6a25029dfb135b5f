"""`verify` of a merged model: is it the base with the adapter in it, and nothing else?"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.complete import require_complete
from ..adapters.few_bits import kept_companions
from ..adapters.folder import Adapter
from ..adapters.places import Places, find_places
from ..checkpoint.files import Files
from ..checkpoint.index import CONFIG, Checkpoint, read_checkpoint
from ..checkpoint.pulled import Tell, disk_workers, pulled
from ..checkpoint.source import SourceOptions
from ..errors import NumericalError, OptionError, TargetError
from ..matrices.quantisation import quantization_config
from ..matrices.restore import Restored, restore
from ..output.base import companions
from ..output.manifest import fingerprint
from ..progress import Progress
from ..proof.folder import Check
from ..proof.merged import (
    check_config,
    check_copied,
    check_differs,
    check_dtypes,
    check_listed,
    check_matrices,
    check_rest,
    check_tensors,
)
from ..proof.paired import Pair, Paired, pair_up
from ..team.part import Part
from ..team.sharing import Work, serve, share
from ..team.team import Job
from .announce import announce
from .merge_matrices import find_all
from .processes import Library, require_same
from .right_base import require_right_base
from .verification import MERGED, Verification
from .verify_given import Given, adapter_of

_AT_ONCE = 2  # touched matrices that are worked on at a time, each with its base in float64 by blocks
_WIDE = "float32"  # in which matrices in few bits are looked at


@dataclass(frozen=True)
class _Case:
    """The merged model, its base as it is and as numbers, the adapter, and which tensor was made from which."""

    merged: Checkpoint
    base: Checkpoint
    restored: Restored
    adapter: Adapter
    places: Places
    paired: Paired


def verify_merged(
    job: Job, library: Library, files: Files, given: Given, told: Mapping[str, Any], options: SourceOptions,
    progress: Progress,
) -> Verification:  # fmt: skip
    """For the first process. `library` has opened `files`; `told` is its ailora-result.json, {} without one."""
    base, adapter = _require_given(files, given, told)
    merged = read_checkpoint(files)
    stored, held = read_checkpoint(library.open(base, **options)), adapter_of(adapter)
    first = [check_listed(files, told)] if told.get("verb") == "merge" else []
    try:
        remarks = require_right_base(stored, held)
        case = _case(merged, stored, held)
        remarks += require_complete(case.restored.plain, held, case.places, None)
    except TargetError as error:
        return _verdict(merged, stored, held, [*first, Check("adapter", False, error.problem)], ())
    for text in (*remarks, *held.notices):
        progress.notice(text)
    parts = [(shard, header.file_size) for shard, header in stored.headers.items()]
    announce(stored.files, parts, sum(size for _, size in parts), progress)
    job.call({
        "what": MERGED, "opened": library.tell(), "base": str(base), "adapter": str(adapter),
        "shards": fingerprint(merged), "of_base": fingerprint(stored),
    })  # fmt: skip
    found = _looked(job, case, progress)
    checks = [*first, *_checks(case, found, told)]
    return _verdict(merged, stored, held, checks, tuple(one.to_json() for one in found))


def help_merged(job: Job, library: Library, files: Files, told: Mapping[str, Any], options: SourceOptions) -> None:
    """The part of all processes but the first."""
    merged, stored = read_checkpoint(files), read_checkpoint(library.open(told["base"], **options))
    require_same(job, merged, told["shards"])
    require_same(job, stored, told["of_base"])
    case = _case(merged, stored, adapter_of(told["adapter"]))
    serve(job, "tensors", case.paired.pairs, _looking(case))


def _require_given(files: Files, given: Given, told: Mapping[str, Any]) -> tuple[str | Path, str | Path]:
    base, adapter = given.of_merge(told)
    lacking = [name for name, one in (("--base", base), ("--adapter", adapter)) if one is None]
    if base is None or adapter is None:
        raise OptionError(
            f"{files.origin.text} is a merged model: what it was made from is not here ({' and '.join(lacking)}).",
            f"ailora-tools verify {files.origin.text} --base BASE --adapter ADAPTER",
        )
    return base, adapter


def _case(merged: Checkpoint, stored: Checkpoint, held: Adapter) -> _Case:
    """TargetError where the adapter does not fit the base, or the merged model is in few bits."""
    in_few_bits = bool(quantization_config(merged.config))
    if in_few_bits and not quantization_config(stored.config):
        raise TargetError(
            f"{merged.location} is in few bits, and its base is not: its numbers are not base plus adapter any more.",
            "Check the merged model before it is quantised.",
        )
    if in_few_bits:  # which the adapter can only be in by the zero points
        restored, places, _ = find_all(stored, held, None, "float")
    else:
        restored = restore(stored, _WIDE if quantization_config(stored.config) else None)
        places = find_places(restored.plain, held)
    return _Case(merged, stored, restored, held, places, pair_up(restored, places, merged))


def _looked(job: Job, case: _Case, progress: Progress) -> list[Any]:
    """What all processes found, in the order of the pairs."""
    from ..proof.merged_matrix import Found

    pairs = case.paired.pairs
    progress.start("Checking", len(pairs), sum(pair.nbytes for pair in pairs))
    found = {}
    for pair, part in share(job, "tensors", pairs, _looking(case), None, progress):
        found[pair.name] = Found(**part.meta)
        progress.advance(pair.name, pair.nbytes)
    return [found[pair.name] for pair in pairs]


def _looking(case: _Case) -> Work[Pair]:
    """Pairs in, what was found of each out, as `Found.to_json` has it."""
    import torch

    from ..checkpoint.arithmetic import ieee
    from ..proof.merged_matrix import Found, Looking

    workers = disk_workers()
    share_of_threads = max(1, torch.get_num_threads() // workers)
    looking = Looking(case.base.files, case.merged.files, case.adapter, case.places)
    room = threading.BoundedSemaphore(_AT_ONCE)

    def one(pair: Pair, tell: Tell) -> Part:
        with nullcontext() if pair.plain else room:
            try:
                found = looking.look(pair)
            except NumericalError as error:
                found = Found(pair.name, pair.touched, f"cannot be checked: {error.problem}")
        return Part(found.to_json())

    def work(wanted: Iterator[Pair]) -> Generator[tuple[Pair, Part]]:
        with ieee():
            yield from pulled(wanted, one, workers, lambda nbytes: None, torch.set_num_threads, (share_of_threads,))

    return work


def _checks(case: _Case, found: Sequence[Any], told: Mapping[str, Any]) -> Iterator[Check]:
    """In the order in which they are shown."""
    base, merged = case.restored.plain, case.merged
    yield check_tensors(case.paired, base, merged)
    yield check_dtypes(case.paired.pairs)
    yield check_config(base, merged)
    if told.get("verb") == "merge":
        copied = set(kept_companions(case.restored, companions(case.base))) - {CONFIG, case.base.index_name}
        yield check_copied(case.base.files, merged.files, copied)
    yield check_matrices(found)
    yield check_rest(found, case.paired.pairs)
    yield check_differs(found)


def _verdict(
    merged: Checkpoint, base: Checkpoint, held: Adapter, checks: Sequence[Check], found: tuple[Mapping[str, Any], ...]
) -> Verification:
    where = merged.origin.path or merged.location
    return Verification(where, f"{base.location} and {held.location}", tuple(checks), None, MERGED, found)
