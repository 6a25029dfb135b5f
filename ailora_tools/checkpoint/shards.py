"""Which files of a folder are the weights, chosen as transformers and diffusers choose; and why none can be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, listed
from .files import Files, Origin
from .gate import INDEX_BYTES, read_json, stays_inside
from .header import quoted

STEMS = ("model", "diffusion_pytorch_model")
TRAINABLE_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".ot")
OTHER_WEIGHTS = (*TRAINABLE_WEIGHTS, ".gguf", ".onnx", ".tflite")
INDEX_NAME = re.compile(r"(?:.*/)?[^/]+(?:\.index|\.(?:safetensors|bin)\.index\.[\w-]+)\.json")
_VARIANT = re.compile(
    rf"(?:{'|'.join(STEMS)})\.(?:safetensors\.index\.(?P<index>[\w-]+)\.json|(?P<single>[\w-]+)\.safetensors)"
)
_SHARD = re.compile(r"-\d+-of-\d+")
_AGAIN = "Download or copy it again."


@dataclass(frozen=True)
class Shards:
    """The files with the weights, and the index that names them (None: one file); `told` are notices on the choice."""

    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] | None = None
    metadata: bool = True
    variant: str | None = None
    told: tuple[str, ...] = ()


def find_shards(files: Files, names: list[str], config: Mapping[str, Any]) -> Shards:
    """The weights of a model: what MODEL or config.json name, the plain files, an only variant, an only file.

    Raises CheckpointError where nothing or too much is there.
    """
    stated = _stated(files, names, config)
    if stated is not None:
        return _opened(files, names, stated)
    stems = STEMS[::-1] if "_class_name" in config and "model_type" not in config else STEMS
    for stem in stems:
        single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        # transformers looks for the single file first, diffusers for the index (modeling_utils of each).
        there = [name for name in ((single, index) if stem == "model" else (index, single)) if name in names]
        if there:
            return _opened(files, names, there[0], told=_both(there))
    odd = {name: what for name, what in files.oddities().items() if _is_weights(name)}
    if odd:
        raise _odd(files, *min(odd.items()))
    variants = _variants(names)
    if len(variants) == 1:
        ((variant, name),) = variants.items()
        told = f"only the variant {variant!r} of the weights is there: loaders take it with variant={variant!r}"
        return _opened(files, names, name, variant, (told,))
    # Hidden ones are no weights: macOS leaves "._model.safetensors" beside a file copied from it.
    candidates = [name for name in names if name.endswith(".safetensors") and "/" not in name and name[0] != "."]
    if len(candidates) == 1:
        return Shards((candidates[0],))
    raise _no_weights(files.origin, names, candidates, list(variants.values()))


def _stated(files: Files, names: list[str], config: Mapping[str, Any]) -> str | None:
    """The file or index that was given as MODEL, or transformers_weights of config.json, which transformers obeys."""
    given = files.origin.path.name if files.origin.path else ""
    if given in names and (given.endswith(".safetensors") or INDEX_NAME.fullmatch(given)):
        return given
    named = config.get("transformers_weights")
    if not isinstance(named, str):
        return None
    if named not in names or not (named.endswith(".safetensors") or INDEX_NAME.fullmatch(named)):
        raise CheckpointError(
            f"{files.where('config.json')}: transformers_weights names {quoted(named)}, which is no safetensors file "
            "or index of this folder.",
            "Fetch that file, or take the entry out of config.json.",
        )
    return named


def _opened(
    files: Files, names: list[str], chosen: str, variant: str | None = None, told: tuple[str, ...] = ()
) -> Shards:
    """The single file `chosen`, or the shards of the index `chosen`, every one of which must be there."""
    hit = _VARIANT.fullmatch(chosen)
    variant = variant or (hit and (hit["index"] or hit["single"]))
    if chosen.endswith(".safetensors"):
        return Shards((chosen,), variant=variant, told=told)
    index = read_json(files, chosen, INDEX_BYTES)
    weight_map = _weight_map(index, files.where(chosen))
    shards = tuple(sorted(set(weight_map.values())))
    missing = sorted(set(shards) - set(names))
    if missing:
        odd = files.oddities()
        found = [f"{quoted(name)} ({odd[name]})" if name in odd else quoted(name) for name in missing]
        raise CheckpointError(
            f"{files.where(chosen)} names shards that are not there: {listed(found)}.",
            _INCOMPLETE_REPOSITORY if files.origin.on_hub else _INCOMPLETE,
        )
    return Shards(shards, chosen, weight_map, isinstance(index.get("metadata"), dict), variant, told)


def _both(there: list[str]) -> tuple[str, ...]:
    if len(there) == 1:
        return ()
    library = "transformers" if there[0].startswith("model.") else "diffusers"
    return (f"{there[0]} and {there[1]} are both there: {there[0]} is read, as {library} does, and the other left out",)


def _variants(names: list[str]) -> dict[str, str]:
    """Variant -> its file, or its index; a single file counts before an index, as for the plain ones."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name.endswith(".safetensors")):
        hit = _VARIANT.fullmatch(name)
        if hit and not (hit["single"] and _SHARD.search(hit["single"])):
            found[hit["index"] or hit["single"]] = name
    return found


def _weight_map(index: Mapping[str, Any], where: str) -> dict[str, str]:
    weight_map = index.get("weight_map")
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


def _is_weights(name: str) -> bool:
    return "/" not in name and name[0] != "." and (name.endswith(".safetensors") or bool(INDEX_NAME.fullmatch(name)))


def _odd(files: Files, name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{files.where(name)}: {what}, not a file of weights.", _INCOMPLETE)


def _no_weights(origin: Origin, names: list[str], candidates: list[str], variants: list[str]) -> CheckpointError:
    location = origin.text
    if variants:
        return CheckpointError(
            f"{location}: several variants of the weights and no plain ones: {listed(variants, 6)}.",
            "Give the one that is meant as MODEL: its .safetensors file, or its index.",
        )
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
