"""Did the start arrive? What a loader says in a warning at most, said as an error before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.folder import Adapter, Factors, open_adapter
from ..checkpoint.header import StoredTensor
from ..errors import TargetError, listed
from ..output.manifest import Manifest, read_manifest
from ..output.names import OFFSET_FOLDER
from .attach import attached_start, is_own
from .base_weights import base_faults
from .folder import start_folder
from .layers import LOAD, LoraLayer, in_memory, lora_layers, moved_modules, names_of, nearest, plain_path, structure

_CASTS = (torch.bfloat16, torch.float16)  # which a trainer may have put between the file and the model


@dataclass(frozen=True)
class _Held:
    """The module of the folder that a layer is, the layer, and what the file has for it."""

    module: str
    layer: LoraLayer
    factors: Factors


def check_start(model: nn.Module, adapter_dir: str | Path, *, trained: bool = False) -> int:
    """Raise TargetError unless `model` is at the start that `init` wrote; else, how many modules were checked.

    `model` has base and adapter from `adapter_dir` (`.../ailora_init`) loaded: by PEFT under any adapter name, by
    transformers' `load_adapter`, wrapped by DDP, FSDP or torch.compile, or as a part of another module. Call it right
    after loading: training changes A and B. For a trained or resumed adapter, `trained=True` asks only that A and B are
    like those at the start, as `convert` does, and everything else as before.

    Checked are: LoRA on every module of the manifest and on no other; every tensor of the file, equal in the model
    (after casts to 16 bits, if there were any); the scaling; that the adapter is active; that the weights below it are
    the residual that the manifest proves, and not the original, which with the adapter would count a part twice. With
    `--no-base`, `attach` or `residualize` has to have been called, or the frozen adapter be active, on the original.

    Left out, without a word, is what cannot be looked at: numbers that are on the meta device, sharded (FSDP, tensor
    parallel, ZeRO-3) or quantised; in a base loaded in another dtype, which matrix it is where rounding hides that.
    No collective operation is called, and so one process may ask alone.

    Raises CheckpointError if there is no manifest beside `adapter_dir`, VerificationError if it was changed.

    >>> check_start(model, "start/ailora_init")
    4
    """
    folder = start_folder(adapter_dir)
    manifest, adapter = read_manifest(folder.parent), open_adapter(folder)
    layers = lora_layers(model)
    faults = {name: _faults(model, layers, name, adapter, manifest, trained) for name in names_of(layers)}
    name, wrong = nearest(layers, faults, manifest.modules)
    hint = LOAD if trained else f"{LOAD} Training changes A and B: after it, ask with trained=True."
    if not wrong:
        held = _held(layers, name, adapter)
        offset = _offset(layers, held, name, manifest, folder)
        places = [(one.module, one.layer) for one in held]
        wrong, hint = base_faults(places, adapter, manifest, offset, folder)
    if wrong:
        raise TargetError(f"{folder}: not the start: {'; '.join(wrong)}.", hint)
    return len(adapter.modules)


def require_taken_out(model: nn.Module, adapter_dir: str | Path) -> None:
    """Raise TargetError where the adapter of a folder of `--no-base` lies on the original with nothing that takes its
    part out again: a resumed run that forgot `attach`. One module is looked at, so that it costs nothing."""
    folder = start_folder(adapter_dir)
    manifest = read_manifest(folder.parent)
    if not manifest.offset:
        return
    adapter, layers = open_adapter(folder), lora_layers(model)
    name, _ = nearest(layers, {name: structure(layers, name, manifest.modules) for name in names_of(layers)}, [])
    held = _held(layers, name, adapter)
    if _offset(layers, held, name, manifest, folder) is False:
        moved = [(one.module, one.layer) for one in held if one.module in moved_modules(manifest)]
        wrong, hint = base_faults(moved[:1], adapter, manifest, False, folder)
        if wrong:
            raise TargetError(f"{folder}: {'; '.join(wrong)}.", hint)


def _held(layers: Sequence[LoraLayer], name: str, adapter: Adapter) -> list[_Held]:
    found = ((layer.module(adapter.modules), layer) for layer in layers if name in layer.adapters)
    return [_Held(module, layer, adapter.modules[module]) for module, layer in found if module is not None]


def _faults(
    model: nn.Module, layers: Sequence[LoraLayer], name: str, adapter: Adapter, manifest: Manifest, trained: bool
) -> list[str]:
    """All that is wrong with one adapter of the model, one text a kind."""
    if wrong := structure(layers, name, manifest.modules):
        return wrong
    held = _held(layers, name, adapter)
    scaled = [
        f"{one.module} ({_scaling(one, name):.6g} instead of {one.factors.scaling:.6g})"
        for one in held
        if not math.isclose(_scaling(one, name), one.factors.scaling, rel_tol=1e-6)
    ]
    if trained:
        other, found = _unlike(held, name, adapter, manifest), "{} were not trained from it"
    else:
        other, found = (
            list(_other_tensors(held, name, adapter)),
            "{} differ from the file (trained since, or of another folder)",
        )
    told = (
        (other, found),
        ([] if trained else list(_strangers(model, name, adapter)), "{} did not arrive"),
        (scaled, "another scaling on {}"),
        ([one.module for one in held if not is_active(one.layer, name)], "the adapter is not active on {}"),
    )
    return [text.format(listed(paths)) for paths, text in told if paths]


def _other_tensors(held: Sequence[_Held], name: str, adapter: Adapter) -> Iterator[str]:
    for one in held:
        parts = (("lora_A", one.factors.A), ("lora_B", one.factors.B), ("lora_magnitude_vector", one.factors.magnitude))
        for kind, stored in parts:
            if stored is not None and not _arrived(one.layer.factor(kind, name), stored, adapter):
                yield f"{one.module}.{kind}"


def _unlike(held: Sequence[_Held], name: str, adapter: Adapter, manifest: Manifest) -> list[str]:
    """The modules whose factors were not trained from the start: all or none, as they are judged together. `attach` has
    judged its own."""
    moved = moved_modules(manifest)
    places = [(one.module, one.layer) for one in held if one.module in moved and not attached_start(one.layer, name)]
    try:
        own = not places or is_own(name, places, adapter)
    except TargetError:
        own = False
    return [] if own else [module for module, _ in places]


def _strangers(model: nn.Module, name: str, adapter: Adapter) -> Iterator[str]:
    """Tensors beside A and B, such as biases or a head; the folder of `init` has none unless the user put them in."""
    if not (adapter.others or adapter.tokens):
        return
    ours = {_short(plain_path(path), name): tensor for path, tensor in model.named_parameters()}
    rows = {f"{module}.token_adapter.trainable_tokens_delta.{name}": at for module, at in adapter.tokens.items()}
    for key, stored in {**adapter.others, **rows}.items():
        found = [tensor for path, tensor in ours.items() if f".{path}".endswith(f".{_short(key, name)}")]
        if not any(_arrived(tensor, stored, adapter) for tensor in found):
            yield key


def _short(path: str, name: str) -> str:
    return path.replace(".base_layer.", ".").replace(f".modules_to_save.{name}.", ".")


def _arrived(tensor: Tensor | None, stored: StoredTensor, adapter: Adapter) -> bool:
    """Whether a tensor of the model is that of the file, or cannot be looked at."""
    held = in_memory(tensor)
    if held is None:
        return tensor is not None
    if tuple(held.shape) != stored.shape:
        return held.ndim != len(stored.shape) or torch.distributed.is_initialized()  # a shard of it
    wanted = adapter.load(stored)
    return any(torch.equal(wanted.to(dtype).to(held.dtype), held) for dtype in (wanted.dtype, *_CASTS))


def _scaling(one: _Held, name: str) -> float:
    known = getattr(one.layer.layer, "scaling", {})
    return float(known.get(name, one.factors.scaling))


def is_active(layer: LoraLayer, name: str) -> bool:
    """Whether what the layer computes has this adapter in it."""
    if getattr(layer.layer, "disable_adapters", False):
        return False
    return name in getattr(layer.layer, "active_adapters", [name])


def _offset(
    layers: Sequence[LoraLayer], held: Sequence[_Held], name: str, manifest: Manifest, folder: Path
) -> bool | None:
    """Whether the part that is in the adapter is taken out of the original again: by `attach`, or by an active frozen
    adapter; None where it is taken out of the base itself."""
    moved = moved_modules(manifest)
    starts = [attached_start(one.layer, name) for one in held if one.module in moved]
    if starts and None not in starts:
        return True
    return _frozen(layers, folder.parent / OFFSET_FOLDER) if manifest.offset else None


def _frozen(layers: Sequence[LoraLayer], folder: Path) -> bool:
    """Whether an adapter of the model is the frozen one of `folder`, on every module, and active."""
    adapter = open_adapter(folder)
    for name in names_of(layers):
        held = _held(layers, name, adapter)
        whole = {one.module for one in held if is_active(one.layer, name)} == set(adapter.modules)
        if whole and not any(_other_tensors(held, name, adapter)):
            return True
    return False
