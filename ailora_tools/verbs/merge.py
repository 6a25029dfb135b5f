"""`merge`: a base and an adapter become one checkpoint, shard by shard; other tensors are copied as bytes.

W' = W + s B A in float32 and, for DoRA, W' = m * (W + s B A) / norm of its rows (arXiv 2402.09353, equation 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..adapters.complete import require_complete
from ..adapters.folder import Adapter, open_adapter
from ..adapters.peft import ADAPTER_FILES
from ..adapters.places import Place, Places, find_places
from ..checkpoint.gate import stated_path
from ..checkpoint.header import BASE_DTYPES
from ..checkpoint.index import CONFIG, Checkpoint, open_checkpoint
from ..checkpoint.source import SourceOptions
from ..display.shown import shows_progress
from ..errors import AiloraError, OptionError, TargetError, listed
from ..output.atomic import Output, making
from ..output.base import BaseWriter, companions, copy_file, left_out, require_readable
from ..output.layout import lay_out, restate_index, widened
from ..output.manifest import Manifest, read_manifest
from ..output.names import ADAPTER_FOLDER, MANIFEST
from ..output.place import output_folder
from ..output.result import write_result
from ..output.sources import Sources
from ..output.spans import write_json
from ..progress import Progress, heard
from ..targets.ties import untied
from .announce import announce
from .result import Result

if TYPE_CHECKING:
    from torch import Tensor


_LARGEST_F16 = 65504.0
_WIDER = "Write it in a wider type: --base-dtype float32. If that does not hold it either, its training diverged."


@dataclass(frozen=True)
class Merged:
    """One tensor and norm(W' - W) / norm(W), Frobenius, as stored."""

    tensor: str
    change: float


@dataclass(frozen=True, repr=False)
class Merge(Result):
    """Where the merged checkpoint lies, and what was changed by how much."""

    folder: Path
    modules: tuple[Merged, ...]
    dtypes: tuple[str, ...]

    _columns = ("tensor", "change")

    def told(self) -> str:
        """How many tensors changed, and where the model is."""
        return f"of {len(self.modules)} tensors, {self.folder}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder),
            "dtypes": list(self.dtypes),
            "modules": [asdict(module) for module in self.modules],
        }


@shows_progress
def merge(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    base_dtype: str = "keep",
    device: str = "auto",
    overwrite: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
    **source: Unpack[SourceOptions],
) -> Merge:
    """Write the checkpoint `base` with `adapter` added in, as PEFT's `merge_and_unload` would, but without the model.

    `base` is the checkpoint that the adapter was trained on: the residual base that `initialize` wrote, or an original
    for a plain LoRA. `base_dtype` "float32" widens the changed tensors. Inputs are never changed.

    Raises CheckpointError, TargetError where the two do not belong together, OptionError, NumericalError, OutputError.

    >>> made = merge("start", "start/ailora_init", "merged")
    >>> len(made.modules), made.dtypes
    (4, ('F32',))
    """
    if base_dtype not in BASE_DTYPES:
        raise OptionError(f"base dtype {base_dtype!r}: it must be {' or '.join(BASE_DTYPES)}.")
    progress = heard(progress)
    checkpoint, held = open_checkpoint(base, **source), open_adapter(adapter)
    folder = output_folder(output, "", [checkpoint.origin, held.files.origin], progress)
    _require_right_base(checkpoint, held)
    found = find_places(checkpoint, held)
    places = found.places
    added = {place.name: place.stored for place in places if place.added}
    layouts = lay_out(checkpoint, (place.stored for place in places if not place.added), base_dtype, added)
    dtypes = {place.name: widened(place.stored.dtype, base_dtype) for place in places}
    complete = require_complete(checkpoint, held, found, _start(checkpoint))
    for text in (*checkpoint.told, *left_out(checkpoint), *complete, *held.notices, *_about_ties(found)):
        progress.notice(text)
    copied = [(name, checkpoint.files.size(name)) for name in companions(checkpoint)]
    require_readable(checkpoint, (name for name, _ in copied))
    parts = [*copied, *((shard, header.file_size) for shard, header in checkpoint.headers.items())]
    announce(checkpoint.files, parts, sum(size for _, size in parts), progress)
    nbytes = sum(layout.size for layout in layouts.values()) + sum(size for _, size in copied)
    sources = Sources((checkpoint.files, [name for name, _ in parts]), (held.files, ADAPTER_FILES))
    out = Output(folder, "merge", overwrite=overwrite, force=force, nbytes=nbytes)
    with making(out, sources.require_unchanged) as tree:
        with BaseWriter(checkpoint.files, layouts, tree, {}) as writer:
            merging = partial(_merged, held, base_dtype=base_dtype)
            written = list(_write(checkpoint, places, merging, writer, device, progress))
        for name, _ in copied:
            copy_file(checkpoint.files, name, tree / name)
        restate_index(tree, checkpoint, dtypes, added)
        _restate_config(tree, checkpoint, found, [done.tensor for done, wide in written if wide], progress)
        result = Merge(folder, tuple(done for done, _ in written), tuple(sorted(set(dtypes.values()))))
        made_from = {"base": checkpoint.origin.to_json(), "adapter": held.location}
        write_result(tree, {"verb": "merge", **made_from, **result.to_json()})
    return result


def _require_right_base(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """An adapter that started from the weights fits the residual base only; a plain LoRA the original only."""
    stated = str(adapter.config.get("base_model_name_or_path") or "")
    trained_on = stated_path(stated)
    here = checkpoint.origin.path.resolve() if checkpoint.origin.path else None
    if trained_on is not None and trained_on == here:
        return
    residual = _manifest(trained_on)
    if residual is not None and residual.base:
        raise TargetError(
            f"{adapter.location} was trained on the residual base {trained_on}, not on {checkpoint.location}: what "
            "`init` moved into it would count twice.",
            f"Merge it into {trained_on}, or `ailora-tools convert` it for the original first.",
        )
    manifest = _manifest(here)
    original = str(manifest.source["location"]) if manifest is not None and manifest.base else ""
    if original and original.removeprefix("hf://") in (stated, str(trained_on)):
        raise TargetError(
            f"{adapter.location} is for the original {original}; {checkpoint.location} is its residual base, which "
            "lacks what `init` moved.",
            f"Merge it into {original}.",
        )


def _manifest(folder: Path | None) -> Manifest | None:
    try:
        return read_manifest(folder) if folder and (folder / MANIFEST).is_file() else None
    except (AiloraError, OSError):
        return None


def _about_ties(found: Places) -> list[str]:
    names = listed(found.untied)
    return [f"{names} have tensors of their own now; tie_word_embeddings is false"] if found.untied else []


def _restate_config(
    tree: Path, checkpoint: Checkpoint, found: Places, wide: Sequence[str], progress: Progress
) -> None:  # fmt: skip
    """config.json anew where the merged model is another than it says: nothing is tied, or the dtype that loaders take
    from it would make infinity of the tensors `wide`."""
    config = untied(checkpoint.config) if found.untied else dict(checkpoint.config)
    if wide:
        config = _in_float32(config)
        progress.notice(f"float16 does not hold {listed(wide)}: config.json says float32 now")
    if config != checkpoint.config and CONFIG in checkpoint.files.names():
        write_json(tree / CONFIG, config)


def _in_float32(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with float32 wherever it states the dtype of the weights."""
    inner = {key: _in_float32(value) for key, value in config.items() if isinstance(value, dict)}
    stated = {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
    return {**config, **inner, **stated}


def _start(checkpoint: Checkpoint) -> Adapter | None:
    """The adapter that `init` wrote beside this base."""
    folder = checkpoint.origin.path
    if folder is None or _manifest(folder) is None:
        return None
    try:
        return open_adapter(folder / ADAPTER_FOLDER)
    except (AiloraError, OSError):
        return None


def _write(
    checkpoint: Checkpoint, places: Sequence[Place], merging: Callable[[Place, Tensor], tuple[Tensor, float, bool]],
    writer: BaseWriter, device: str, progress: Progress,
) -> Iterator[tuple[Merged, bool]]:  # fmt: skip
    """Shards are being copied in the background: put each merged tensor into its place, then wait for the rest. With
    each, whether it is one that the float16 of the base would not hold."""
    from ..checkpoint.arithmetic import ieee
    from ..checkpoint.stream import find_device, matrix_bytes, stream

    progress.start("Merging", len(places), 0)
    with ieee():
        for place, (W, change, wide) in stream(checkpoint.files, places, merging, find_device(device), progress.notice):
            writer.write(place.stored.file, place.name, matrix_bytes(W))
            progress.advance(place.name, place.stored.nbytes)
            yield Merged(place.name, change), wide
    progress.start("Copying", len(writer.shards), 0)
    for shard in writer.shards:
        writer.sha256(shard)  # waits until it is complete and on disk
        progress.advance(shard)


def _merged(adapter: Adapter, place: Place, old: Tensor, base_dtype: str) -> tuple[Tensor, float, bool]:
    """The new tensor as it is stored, on the CPU, how far it is from the old one, and whether float16, if the old one
    is that, does not hold it."""
    from ..adapters.apply import changed
    from ..checkpoint.stream import DTYPES
    from ..linalg.finite import stored
    from ..linalg.scale import norm, peak

    wide = old.double() if place.stored.dtype == "F64" else old.float()
    new = changed(wide, adapter, place)
    result = stored(new, DTYPES[widened(place.stored.dtype, base_dtype)], place.name, _WIDER)
    size = norm(wide)
    beyond = place.stored.dtype == "F16" and peak(result) > _LARGEST_F16
    return result.cpu().contiguous(), norm(result.to(wide) - wide) / size if size else 0.0, beyond
