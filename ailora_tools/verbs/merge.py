"""`merge`: a base and an adapter become one checkpoint, shard by shard; other tensors are copied as bytes.

W' = W + s B A in float32 and, for DoRA, W' = m * (W + s B A) / norm of its rows (arXiv 2402.09353, equation 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..adapters.folder import Adapter, Factors, match_module, open_adapter
from ..checkpoint.header import TensorInfo
from ..checkpoint.index import Checkpoint, open_checkpoint
from ..checkpoint.source import SourceOptions
from ..errors import AiloraError, OptionError, TargetError, listed
from ..output.atomic import RECORD, making, require_outside, require_space
from ..output.base import BaseWriter, ShardLayout, companions, copy_file, keep_layout, recast_layout, restate_total
from ..output.manifest import NAME, Manifest, read_manifest
from ..output.spans import write_json
from ..progress import Progress, Silent
from ..targets.module_names import module_paths
from ..targets.plan import SUPPORTED_DTYPES
from .announce import announce

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Place:
    """A tensor of the base that changes: by the factors of a module, or to a tensor of the adapter as it is."""

    file: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    merged: str  # its dtype in the result
    transposed: bool
    factors: Factors | None
    replacement: TensorInfo | None


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
    progress: Progress | None = None,
    **source: Unpack[SourceOptions],
) -> Merge:
    """Write the checkpoint `base` with `adapter` added in, as PEFT's `merge_and_unload` would, but without the model.

    `base` is the checkpoint that the adapter was trained on: the residual base that `initialize` wrote, or an original
    for a plain LoRA. `base_dtype` "float32" widens the changed tensors. Inputs are never changed.

    Raises CheckpointError, TargetError where the two do not belong together, OptionError, NumericalError, OutputError.
    """
    if base_dtype not in ("keep", "float32"):
        raise OptionError(f"base dtype {base_dtype!r}: it must be keep or float32.")
    progress, folder = progress or Silent(), Path(output).expanduser().absolute()
    checkpoint, held = open_checkpoint(base, **source), open_adapter(adapter)
    for origin in (checkpoint.origin, held.files.origin):
        require_outside(folder, origin)
    _require_right_base(checkpoint, held)
    places = _find_places(checkpoint, held, base_dtype)
    layouts = _lay_out(checkpoint, places, base_dtype)
    copied = [(name, checkpoint.files.size(name)) for name in companions(checkpoint)]
    parts = [*copied, *((shard, header.file_size) for shard, header in checkpoint.headers.items())]
    announce(checkpoint.files, parts, sum(size for _, size in parts), progress)
    with making(folder, overwrite=overwrite) as tree:
        require_space(folder, sum(layout.size for layout in layouts.values()) + sum(size for _, size in copied))
        modules = tuple(_write(checkpoint, held, places, layouts, tree, device, progress))
        for name, _ in copied:
            copy_file(checkpoint.files, name, tree / name)
        restate_total(tree, checkpoint, {place.tensor: place.merged for place in places})
        result = Merge(folder, modules, tuple(sorted({place.merged for place in places})))
        made_from = {"base": checkpoint.origin.to_json(), "adapter": held.location}
        write_json(tree / RECORD, {"verb": "merge", **made_from, **result.to_json()})
    return result


def _require_right_base(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """An adapter that started from the weights fits the residual base only; a plain LoRA the original only."""
    stated = str(adapter.config.get("base_model_name_or_path") or "")
    trained_on = Path(stated).expanduser().resolve()
    here = checkpoint.origin.path.resolve() if checkpoint.origin.path else None
    if trained_on == here:
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
        return read_manifest(folder) if folder and (folder / NAME).is_file() else None
    except AiloraError:
        return None


def _find_places(checkpoint: Checkpoint, adapter: Adapter, base_dtype: str) -> list[Place]:
    """Where each module and each further tensor of the adapter lies in the base; all faults at once, in file order."""
    paths = module_paths(checkpoint)
    transposed = bool(adapter.config.get("fan_in_fan_out"))
    places, faults = [], []
    for module, factors in adapter.modules.items():
        name = match_module(module, paths)
        sides = factors.sides[::-1] if transposed else factors.sides
        fault = _fault(checkpoint, module, None if name is None else paths[name], sides)
        if fault or name is None:
            faults.append(fault)
        else:
            places.append(_place(checkpoint, paths[name], base_dtype, transposed, factors, None))
    for module, info in adapter.others.items():
        path, _, kind = module.rpartition(".")
        name = match_module(path, paths)
        tensor = module if name is None else paths[name].removesuffix("weight") + kind
        fault = _fault(checkpoint, module, tensor, info.shape)
        if fault:
            faults.append(fault)
        else:
            places.append(_place(checkpoint, tensor, base_dtype, False, None, info))
    if faults:
        raise TargetError(
            f"{adapter.location} does not fit {checkpoint.location}: {listed(faults, 4)}.",
            "Give the base that the adapter was trained on. New heads (modules_to_save) have no place in a base "
            "without them: load base and adapter with PEFT instead, or save the base with that head first.",
        )
    return sorted(places, key=lambda place: (place.file, place.start))


def _fault(checkpoint: Checkpoint, module: str, tensor: str | None, shape: tuple[int, ...]) -> str:
    if "lora_" in module:
        return f"{module} cannot be merged"
    if tensor is None or tensor not in checkpoint.tensors:
        return f"{module} is not in the base"
    info = checkpoint.tensors[tensor][1]
    if info.dtype not in SUPPORTED_DTYPES:
        return f"{tensor} is stored as {info.dtype}, which holds no merged weight"
    return "" if info.shape == shape else f"{tensor} has shape {list(info.shape)}, the adapter is for {list(shape)}"


def _place(
    checkpoint: Checkpoint, tensor: str, base_dtype: str, transposed: bool, factors: Factors | None,
    replacement: TensorInfo | None,
) -> Place:  # fmt: skip
    file, info = checkpoint.tensors[tensor]
    merged = "F32" if base_dtype == "float32" and info.dtype in ("F16", "BF16") else info.dtype
    return Place(
        file, tensor, info.dtype, info.shape, info.start, info.stop, merged, transposed, factors, replacement
    )  # fmt: skip


def _lay_out(checkpoint: Checkpoint, places: list[Place], base_dtype: str) -> dict[str, ShardLayout]:
    touched: dict[str, dict[str, str]] = {shard: {} for shard in checkpoint.headers}
    for place in places:
        touched[place.file][place.tensor] = place.merged
    lay_out = keep_layout if base_dtype == "keep" else recast_layout
    return {shard: lay_out(header, touched[shard]) for shard, header in checkpoint.headers.items()}


def _write(
    checkpoint: Checkpoint, adapter: Adapter, places: list[Place], layouts: Mapping[str, ShardLayout], tree: Path,
    device: str, progress: Progress,
) -> Iterator[Merged]:  # fmt: skip
    """Copy shards in the background, and put each merged tensor into its place."""
    with BaseWriter(checkpoint.files, layouts, tree, {}) as writer:
        from ..checkpoint.stream import find_device, matrix_bytes, stream

        def work(place: Place, W: Tensor) -> tuple[Tensor, float]:
            return _merged(adapter, place, W)

        progress.start("Merging", len(places), 0)
        for place, (W, change) in stream(checkpoint.files, places, work, find_device(device), progress.notice):
            writer.write(place.file, place.tensor, matrix_bytes(W))
            progress.advance(place.tensor)
            yield Merged(place.tensor, change)
        progress.start("Copying", len(writer.shards), 0)
        for shard in writer.shards:
            writer.sha256(shard)  # waits until it is complete and on disk
            progress.advance(shard)


def _merged(adapter: Adapter, place: Place, stored: Tensor) -> tuple[Tensor, float]:
    """The new tensor as it is stored, on the CPU, and how far it is from the old one."""
    from ..checkpoint.stream import DTYPES

    wide = stored.double() if place.dtype == "F64" else stored.float()
    if place.replacement is not None:
        new = adapter.load(place.replacement).to(wide)
    else:
        new = _added(adapter, place, wide.T if place.transposed else wide)
        new = new.T if place.transposed else new
    result = new.to(DTYPES[place.merged])
    size = float(wide.norm())
    return result.cpu().contiguous(), float((result.to(wide) - wide).norm()) / size if size else 0.0


def _added(adapter: Adapter, place: Place, W: Tensor) -> Tensor:
    """W (out, in) with the adapter in it, in the dtype of W."""
    factors = place.factors
    assert factors is not None
    A, B = (adapter.load(info).to(W) for info in (factors.A, factors.B))
    new = W + factors.scaling * (B @ A)
    if factors.magnitude is not None:
        magnitude = adapter.load(factors.magnitude).to(W).view(-1, 1)
        new = new * (magnitude / new.norm(dim=1, keepdim=True))
    return new
