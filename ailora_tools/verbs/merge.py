"""`merge`: a base and an adapter become one checkpoint, shard by shard; other tensors are copied as bytes.

W' = W + s B A in float32 and, for DoRA, W' = m * (W + s B A) / norm of its rows (arXiv 2402.09353, equation 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..adapters.folder import Adapter, open_adapter
from ..adapters.peft import ADAPTER_FILES
from ..adapters.places import Place, find_places
from ..checkpoint.gate import stated_path
from ..checkpoint.header import BASE_DTYPES, StoredTensor
from ..checkpoint.index import Checkpoint, open_checkpoint
from ..checkpoint.source import SourceOptions
from ..errors import AiloraError, OptionError, TargetError
from ..output.atomic import Output, making
from ..output.base import BaseWriter, companions, copy_file, left_out, require_readable
from ..output.layout import lay_out, restate_index, widened
from ..output.manifest import Manifest, read_manifest
from ..output.names import MANIFEST
from ..output.place import output_folder
from ..output.result import write_result
from ..output.sources import Sources
from ..progress import Progress, Silent
from .announce import announce

if TYPE_CHECKING:
    from torch import Tensor


_WIDER = "Write it in a wider type: --base-dtype float32. If that does not hold it either, its training diverged."


@dataclass(frozen=True)
class Merged:
    """One tensor and norm(W' - W) / norm(W), Frobenius, as stored."""

    tensor: str
    change: float


@dataclass(frozen=True)
class Merge:
    """Where the merged checkpoint lies, and what was changed by how much."""

    folder: Path
    modules: tuple[Merged, ...]
    dtypes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder),
            "dtypes": list(self.dtypes),
            "modules": [asdict(module) for module in self.modules],
        }


def merge(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    base_dtype: str = "keep",
    device: str = "auto",
    overwrite: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **source: Unpack[SourceOptions],
) -> Merge:
    """Write the checkpoint `base` with `adapter` added in, as PEFT's `merge_and_unload` would, but without the model.

    `base` is the checkpoint that the adapter was trained on: the residual base that `initialize` wrote, or an original
    for a plain LoRA. `base_dtype` "float32" widens the changed tensors. Inputs are never changed.

    Raises CheckpointError, TargetError where the two do not belong together, OptionError, NumericalError, OutputError.
    """
    if base_dtype not in BASE_DTYPES:
        raise OptionError(f"base dtype {base_dtype!r}: it must be {' or '.join(BASE_DTYPES)}.")
    progress = progress or Silent()
    checkpoint, held = open_checkpoint(base, **source), open_adapter(adapter)
    folder = output_folder(output, "", [checkpoint.origin, held.files.origin], progress)
    _require_right_base(checkpoint, held)
    places = find_places(checkpoint, held)
    layouts = lay_out(checkpoint, (place.stored for place in places), base_dtype)
    dtypes = {place.stored.name: widened(place.stored.dtype, base_dtype) for place in places}
    for text in (*checkpoint.told, *left_out(checkpoint)):
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
            modules = tuple(_write(checkpoint, places, merging, writer, device, progress))
        for name, _ in copied:
            copy_file(checkpoint.files, name, tree / name)
        restate_index(tree, checkpoint, dtypes)
        result = Merge(folder, modules, tuple(sorted(set(dtypes.values()))))
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


def _named(stated: str) -> Path | None:
    """The path that an adapter names as its base; None for what is none, such as an unknown ~user."""
    try:
        return Path(stated).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _manifest(folder: Path | None) -> Manifest | None:
    try:
        return read_manifest(folder) if folder and (folder / MANIFEST).is_file() else None
    except (AiloraError, OSError):
        return None


def _write(
    checkpoint: Checkpoint, places: list[Place], merging: Callable[[Place, Tensor], tuple[Tensor, float]],
    writer: BaseWriter, device: str, progress: Progress,
) -> Iterator[Merged]:  # fmt: skip
    """Shards are being copied in the background: put each merged tensor into its place, then wait for the rest."""
    from ..checkpoint.arithmetic import ieee
    from ..checkpoint.stream import find_device, matrix_bytes, stream

    progress.start("Merging", len(places), 0)
    with ieee():
        for place, (W, change) in stream(checkpoint.files, places, merging, find_device(device), progress.notice):
            writer.write(place.stored.file, place.stored.name, matrix_bytes(W))
            progress.advance(place.stored.name)
            yield Merged(place.stored.name, change)
    progress.start("Copying", len(writer.shards), 0)
    for shard in writer.shards:
        writer.sha256(shard)  # waits until it is complete and on disk
        progress.advance(shard)


def _merged(adapter: Adapter, place: Place, old: Tensor, base_dtype: str) -> tuple[Tensor, float]:
    """The new tensor as it is stored, on the CPU, and how far it is from the old one."""
    from ..adapters.apply import applied
    from ..checkpoint.stream import DTYPES
    from ..linalg.finite import stored
    from ..linalg.scale import norm

    wide = old.double() if place.stored.dtype == "F64" else old.float()
    if isinstance(place.change, StoredTensor):
        new = adapter.load(place.change).to(wide)
    else:
        new = applied(wide.T if place.transposed else wide, adapter, place.change)
        new = new.T if place.transposed else new
    result = stored(new, DTYPES[widened(place.stored.dtype, base_dtype)], place.stored.name, _WIDER)
    size = norm(wide)
    return result.cpu().contiguous(), norm(result.to(wide) - wide) / size if size else 0.0
