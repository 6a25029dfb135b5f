"""What every process of a `merge` does: put the adapter into one tensor after the other. The first alone keeps the
folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..adapters.few_bits import Source, all_places, sources_of
from ..adapters.folder import Adapter, open_adapter
from ..adapters.places import Place, Places, find_places
from ..adapters.zeros import folded, into_zeros
from ..checkpoint.files import Files
from ..checkpoint.header import StoredTensor
from ..checkpoint.index import Checkpoint, read_checkpoint
from ..checkpoint.source import SourceOptions
from ..errors import TeamError
from ..matrices.quantisation import quantization_config
from ..matrices.restore import Restored, restore
from ..output.layout import ShardLayout, lay_out, widened
from ..team.part import Part
from ..team.sharing import Work, serve
from ..team.team import Job
from .processes import Library, device_of, kind_of, require_alike, require_same, spent, spool_of
from .shards import helping_with_shards

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

_LARGEST_F16 = 65504.0
_WIDER = "Write it in a wider type: --base-dtype float32. If that does not hold it either, its training diverged."


@dataclass(frozen=True)
class Merging:
    """One parameter of the merged model as an item of a list; it costs what is read for it."""

    source: Source

    @property
    def stored(self) -> StoredTensor:
        return self.source.stored

    @property
    def name(self) -> str:
        return self.source.place.name

    @property
    def cost(self) -> float:
        return float(self.nbytes)

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes


def merging(
    files: Files, adapter: Adapter, base_dtype: str, device: torch.device, notice: Callable[[str], None]
) -> Work[Merging]:
    """Parameters in; of each out how far the new one is from the old, norm(W' - W) / norm(W), whether it is `wide`, one
    that the float16 of the base would not hold, the share of its change that is `lost`, and its bytes."""
    from ..checkpoint.arithmetic import ieee
    from ..checkpoint.stream import matrix_bytes, stream
    from ..matrices.dequantise import dequantise

    def merge(item: Merging, raw: Tensor) -> tuple[Tensor, float, bool, float]:
        if item.source.in_zeros and item.source.quantised is not None:
            W = dequantise(raw, item.source.quantised, files)
            zeros, change, lost = folded(raw, W, adapter, files, item.source.place, item.source.quantised)
            return zeros, change, False, lost
        return *_merged(adapter, files, item.source, raw, base_dtype), 0.0

    def work(items: Iterator[Merging]) -> Generator[tuple[Merging, Part]]:
        with ieee():
            for item, (W, change, wide, lost) in stream(files, items, merge, device, notice):
                told = {"change": change, "wide": wide, "lost": lost, "spent": spent(files.traffic)}
                yield item, Part(told, [matrix_bytes(W)])

    return work


def _merged(adapter: Adapter, files: Files, source: Source, raw: Tensor, base_dtype: str) -> tuple[Tensor, float, bool]:
    """The new tensor as it is stored, on the CPU, how far it is from the old one, and whether float16, if the old one
    is that, does not hold it."""
    from ..adapters.apply import changed
    from ..checkpoint.stream import DTYPES
    from ..linalg.finite import stored
    from ..linalg.scale import norm, peak
    from ..matrices.dequantise import dequantise

    place, old = source.place, dequantise(raw, source.quantised, files)
    wide = old.double() if place.stored.dtype == "F64" else old.float()
    new = changed(wide, adapter, place)
    result = stored(new, DTYPES[widened(place.stored.dtype, base_dtype)], place.name, _WIDER)
    size = norm(wide)
    beyond = place.stored.dtype == "F16" and peak(result) > _LARGEST_F16
    return result.cpu().contiguous(), norm(result.to(wide) - wide) / size if size else 0.0, beyond


def layouts_of(
    stored: Checkpoint, restored: Restored, places: Sequence[Place], base_dtype: str
) -> dict[str, ShardLayout]:
    """Of every shard of the merged model; `restored` is `stored` without few bits."""
    changed = (place.stored for place in places if not place.added)
    added = {place.name: place.stored for place in places if place.added}
    return lay_out(stored, changed, base_dtype, added | restored.added, restored.dropped)


def find_all(
    stored: Checkpoint, held: Adapter, dtype: str | None, zeros: str | None
) -> tuple[Restored, Places, list[Place]]:
    """The base as it is to become, what the adapter changes of it, and all that is written anew."""
    view = "float32" if zeros and quantization_config(stored.config) else dtype  # which is not written then
    restored = restore(stored, view)
    found = find_places(restored.plain, held)
    if zeros:
        restored, found = into_zeros(stored, restored, found, held)
    return restored, found, all_places(restored, found.places)


def help_merge(
    job: Job, base: str | Path, adapter: str | Path, dtype: str | None, base_dtype: str, zeros: str | None,
    device: str, source: SourceOptions,
) -> None:  # fmt: skip
    """The part of all processes but the first, until it is done."""
    plan = job.expect()
    stored = read_checkpoint(Library(job, plan["sources"]).open(base, **source))
    require_same(job, stored, plan["shards"])
    held = open_adapter(adapter)
    if sizes(held) != plan["adapter"]:
        told = f"{job.me}: {held.location} is not what it is in the first process."
        raise TeamError(told, "Give all processes the same adapter.")
    restored, _, places = find_all(stored, held, dtype, zeros)
    items = [Merging(one) for one in sources_of(restored, places)]
    layouts = layouts_of(stored, restored, places, base_dtype)
    for told in job.calls():
        place = device_of(device, job)
        require_alike(job, told["kind"], kind_of(place), mixed=False)
        work = merging(restored.plain.files, held, base_dtype, place, lambda text: None)
        with helping_with_shards(job, restored.plain.files, layouts, spool_of(told), hashed=False) as watched:
            serve(job, "tensors", items, watched(work), spool_of(told))


def sizes(adapter: Adapter) -> dict[str, int]:
    """The files of an adapter, by which processes know that they read the same."""
    return {name: adapter.files.size(name) for name in adapter.files.names()}
