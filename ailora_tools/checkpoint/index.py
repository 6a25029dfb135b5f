"""From a path to a checkpoint: which safetensors files belong to it, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from ..errors import CheckpointError, listed
from .files import Files, Origin
from .gate import INDEX_BYTES, read_json, stays_inside
from .header import LENGTH_BYTES, Header, StoredTensor, header_size, parse_header, quoted
from .source import SourceOptions, open_files

# transformers looks for the single file first, then for the index; diffusers uses its own stem.
CONFIG = "config.json"
STEMS = ("model", "diffusion_pytorch_model")
FIRST_READ = 64 * 1024  # most headers fit, so one read is enough
TRAINABLE_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".ot")
OTHER_WEIGHTS = (*TRAINABLE_WEIGHTS, ".gguf", ".onnx", ".tflite")
_AGAIN = "Download or copy it again."


@dataclass(frozen=True)
class Checkpoint:
    """A readable checkpoint: its files, its config, and the header of every shard in name order."""

    files: Files
    config: Mapping[str, Any]
    headers: Mapping[str, Header]
    index_name: str | None = None

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors by name, shard after shard in file order."""
        return {name: stored for header in self.headers.values() for name, stored in header.tensors.items()}

    @property
    def model_type(self) -> str | None:
        """transformers' model_type, diffusers' _class_name, or "timm"; None if config.json states none of them."""
        if "pretrained_cfg" in self.config and "architecture" in self.config:
            return "timm"
        value = self.config.get("model_type", self.config.get("_class_name"))
        return value if isinstance(value, str) else None

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that config.json names, if it does."""
        named = self.config.get("architectures")
        return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()

    @property
    def origin(self) -> Origin:
        return self.files.origin

    @property
    def location(self) -> str:
        """The source as the user knows it."""
        return self.origin.text

    @property
    def nbytes(self) -> int:
        """Size of all shards, headers included."""
        return sum(header.file_size for header in self.headers.values())


def open_checkpoint(model: str | Path, **source: Unpack[SourceOptions]) -> Checkpoint:
    """Open a folder, one .safetensors file or a model on the Hub; reads headers only.

    Raises CheckpointError for a source that is not there, holds no safetensors weights, or whose index
    and shards disagree.
    """
    return read_checkpoint(open_files(model, **source))


def read_checkpoint(files: Files) -> Checkpoint:
    """Read config, index and headers through the seam."""
    names = files.names()
    shards, index_name, weight_map = _find_shards(files, names)
    with ThreadPoolExecutor(files.connections, "headers") as pool:
        headers = dict(zip(shards, pool.map(lambda shard: read_header(files, shard), shards), strict=True))
    if index_name is not None and weight_map is not None:
        _require_agreement(weight_map, headers, files.where(index_name))
    config = read_json(files, CONFIG, constants=True) if CONFIG in names else {}
    return Checkpoint(files, config, headers, index_name)


def read_header(files: Files, name: str) -> Header:
    """One read for most files, a second one where the header is long."""
    size = files.size(name)
    where = files.where(name)
    raw = files.read(name, 0, min(size, FIRST_READ))
    needed = header_size(bytes(raw[:LENGTH_BYTES]), where, size)
    if needed > len(raw):
        raw += files.read(name, len(raw), needed)
    return parse_header(bytes(raw[:needed]), name, size, where)


def _find_shards(files: Files, names: list[str]) -> tuple[list[str], str | None, dict[str, str] | None]:
    for stem in STEMS:
        if f"{stem}.safetensors" in names:
            return [f"{stem}.safetensors"], None, None
        index_name = f"{stem}.safetensors.index.json"
        if index_name in names:
            weight_map = _weight_map(files, index_name)
            missing = [quoted(shard) for shard in sorted(set(weight_map.values()) - set(names))]
            if missing:
                raise CheckpointError(
                    f"{files.where(index_name)} names shards that are not there: {listed(missing)}.",
                    _INCOMPLETE_REPOSITORY if files.origin.on_hub else _INCOMPLETE,
                )
            return sorted(set(weight_map.values())), index_name, weight_map
    # Hidden ones are no weights: macOS leaves "._model.safetensors" beside a file copied from it.
    candidates = [name for name in names if name.endswith(".safetensors") and "/" not in name and name[0] != "."]
    if len(candidates) == 1:
        return candidates, None, None
    raise _no_weights(files.origin, names, candidates)


def _weight_map(files: Files, index_name: str) -> dict[str, str]:
    where = files.where(index_name)
    weight_map = read_json(files, index_name, INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = f"found {quoted(weight_map)}" if weight_map is not None else "it is missing"
        raise CheckpointError(f"{where}: 'weight_map' must map tensors to shards, {found}.", _AGAIN)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{where}: tensor {quoted(tensor)} is mapped to {quoted(shard)}, not to a .safetensors file.", _AGAIN
            )
        if not stays_inside(shard):
            raise CheckpointError(
                f"{where}: tensor {quoted(tensor)} is mapped to {quoted(shard)}, which lies outside the folder.",
                "Do not use this checkpoint unless you know why its index points elsewhere.",
            )
    return weight_map


def _require_agreement(weight_map: Mapping[str, str], headers: Mapping[str, Header], where: str) -> None:
    """Index and shards must name the same tensors: all disagreements in one message."""
    found: dict[str, list[str]] = {tensor: [] for tensor in weight_map}
    for shard, header in headers.items():
        for tensor in header.tensors:
            found.setdefault(tensor, []).append(shard)
    wrong = [
        f"{quoted(tensor)} (index: {weight_map.get(tensor, 'none')}; found in: {', '.join(shards) or 'none'})"
        for tensor, shards in found.items()
        if shards != [weight_map.get(tensor)]
    ]
    if wrong:
        raise CheckpointError(
            f"{where} and the shards disagree about {len(wrong)} of {len(found)} tensors: {listed(wrong)}.",
            "Shards and index come from different exports: fetch them again together.",
        )


def _no_weights(origin: Origin, names: list[str], candidates: list[str]) -> CheckpointError:
    location = origin.text
    if candidates:
        return CheckpointError(
            f"{location}: {len(candidates)} safetensors files but no index: {listed(candidates)}.",
            "Give one of the files as MODEL, or restore model.safetensors.index.json.",
        )
    nested = sorted({name.rsplit("/", 1)[0] for name in names if name.endswith(".safetensors")})
    if nested:
        return CheckpointError(
            f"{location}: the weights lie in subfolders: {listed(nested)}.", "Choose one with --subfolder."
        )
    others = [name for name in names if name.endswith(OTHER_WEIGHTS)]
    if others:
        convert = any(name.endswith(TRAINABLE_WEIGHTS) for name in others)
        return CheckpointError(
            f"{location}: no safetensors weights, only {listed(others)}.",
            (_PULL_REQUEST if origin.on_hub else "") + _CONVERT if convert else _ORIGINAL,
        )
    return CheckpointError(
        f"{location}: not a checkpoint: no .safetensors file in it.", "Give the folder of a model as MODEL."
    )


_INCOMPLETE = "The download is incomplete: fetch the missing files."
_INCOMPLETE_REPOSITORY = "Download the files that are missing, or choose a complete revision with --revision."
_PULL_REQUEST = "Many such repositories have a conversion waiting as a pull request: try --revision refs/pr/1. "
_CONVERT = (
    "Convert them first, with the class of the model: "
    "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) writes safetensors."
)
_ORIGINAL = "These are made for inference: give the safetensors checkpoint that they were made from."
