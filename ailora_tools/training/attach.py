"""`--no-base` without a second adapter: attach the start to the LoRA layers, which then take it out by themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..adapters.folder import Adapter, Factors, open_adapter
from ..errors import TargetError, listed
from ..output.manifest import Manifest, read_manifest
from .attached import Attached, Family, attached_class, comes_from_start
from .base_weights import base_faults
from .folder import start_folder
from .layers import LOAD, LoraLayer, in_memory, lora_layers, moved_modules, names_of, nearest, structure

_Places = Sequence[tuple[str, LoraLayer]]  # a module of the folder, and the layer that it is


def attach(model: nn.Module, adapter_dir: str | Path, *, adapters: Sequence[str] = ()) -> int:
    """Let every adapter that comes from `adapter_dir` (`.../ailora_init`) compute W x + s (B A - B0 A0) x on the
    original W; how many modules that are, none for a method that takes nothing out of the base.

    `model` is the original, quantised or not, with the start loaded by PEFT, or with an adapter that was trained from
    it: call it after every `PeftModel.from_pretrained`, before anything shards the model. The frozen adapter of
    `--no-base` is not needed, and must not be loaded.

    At the start the model computes, to the bit, what the original does, in any dtype, under autocast and on quantised
    layers: both products have the same rounding, and their difference is exactly zero. In every state:

    | state | the model computes |
    | --- | --- |
    | the start, or what was trained from it, is active | the original + its change s (B A - B0 A0) |
    | `disable_adapter()`, `unload()` | the original |
    | `set_adapter` to a copy of it, such as TRL's `ref` | the original + the change of that copy |
    | `set_adapter` to another adapter, such as a plain LoRA | the original + that adapter, without the start |
    | several are active; `adapter_names` of a batch | the original + the change of each |
    | `merge_adapter()`, `merge_and_unload()` | the weight is W + s (B A - B0 A0) |
    | `set_scale`, `scale_layer` | the original + the scaled change |
    | deepcopy, gradient checkpointing, a trainer's resume | the same as before |

    `save_pretrained` writes A and B as ever, which `convert --init` and `merge` know. An adapter that is added later is
    recognised by its factors when it is first used. Training can move small factors so far that nothing is left of the
    start in them: `adapters` names those that come from it whatever they look like. Only PEFT's hot swap passes unseen:
    call `attach` after it.

    Raises TargetError, and changes nothing, where no adapter comes from the start, where the frozen adapter is loaded,
    or where the weights are not the original; CheckpointError if there is no manifest beside `adapter_dir`.

    >>> with_start = PeftModel.from_pretrained(original, "start/ailora_init", is_trainable=True)
    >>> attach(with_start, "start/ailora_init")
    4
    """
    folder = start_folder(adapter_dir)
    manifest, adapter = read_manifest(folder.parent), open_adapter(folder)
    moved = moved_modules(manifest)
    layers = lora_layers(model)
    places = [(module, layer) for layer in layers if (module := layer.module(moved))]
    faults, hint = _faults(layers, places, adapter, manifest, folder)
    if faults:
        raise TargetError(f"{folder}: {'; '.join(faults)}.", hint)
    if not moved:
        return 0
    if unknown := sorted(set(adapters) - set(names_of(layers))):
        raise TargetError(f"the model has no adapter {listed(unknown)}.", f"It has {listed(names_of(layers))}.")
    own = {name: is_own(name, places, adapter) for name in names_of(layers) if name not in adapters}
    if not any(own.values()) and not adapters:
        raise TargetError(f"{folder}: no adapter of the model comes from it.", LOAD)
    family = next((layer.layer.family for _, layer in places if isinstance(layer.layer, Attached)), Family())
    family.told |= set(adapters)
    for module, layer in places:
        if not isinstance(layer.layer, Attached):
            layer.layer.__class__ = attached_class(type(layer.layer))
        cast(Attached, layer.layer).join(family, _start(adapter, module))
    for _, layer in places:
        for name in layer.adapters:
            cast(Attached, layer.layer).comes_from_start(name)
    return len(places)


def attached_start(layer: LoraLayer, name: str) -> tuple[Tensor, Tensor] | None:
    """A0 and B0 that the layer takes out of an adapter; None where it takes out nothing."""
    held = layer.layer
    return held.starts if isinstance(held, Attached) and held.comes_from_start(name) else None


def _faults(
    layers: Sequence[LoraLayer], places: _Places, adapter: Adapter, manifest: Manifest, folder: Path
) -> tuple[list[str], str]:
    """What forbids it, and what to do."""
    if adapter.dora:
        return ["DoRA rescales base and adapter together, so that no part can be taken out"], "Use the residual base."
    by_name = {name: structure(layers, name, manifest.modules) for name in names_of(layers)}
    _, wrong = nearest(layers, by_name, manifest.modules)
    if wrong:
        return wrong, LOAD
    others = [module for module, layer in places if isinstance(layer.layer, Attached)
              and not all(map(torch.equal, layer.layer.starts, _start(adapter, module)))]  # fmt: skip
    if others:
        return [f"another start is attached to {listed(others)}"], "Load the model anew for this one."
    merged = [module for module, layer in places if getattr(layer.layer, "merged", False)]
    if merged:
        return [f"an adapter is merged into {listed(merged)}"], "Call it before: it changes what is merged."
    return base_faults(places, adapter, manifest, True, folder)


def _start(adapter: Adapter, module: str) -> tuple[Tensor, Tensor]:
    factors = adapter.modules[module]
    return adapter.load(factors.A), adapter.load(factors.B)


def is_own(name: str, places: _Places, adapter: Adapter) -> bool:
    """Whether an adapter of the model comes from the start; TargetError where that cannot be told."""
    A: list[tuple[Tensor, Tensor]] = []
    B: list[tuple[Tensor, Tensor]] = []
    scaled = []
    for module, layer in places:
        now = [in_memory(layer.factor(kind, name)) for kind in ("lora_A", "lora_B")]
        then = _start(adapter, module)
        if now[0] is not None and now[1] is not None and now[0].shape == then[0].shape:
            A.append((now[0], then[0]))
            B.append((now[1], then[1]))
            if not isinstance(layer.layer, Attached) and not has_scaling(layer, name, adapter.modules[module]):
                scaled.append(module)
    own = comes_from_start(name, A, B)
    if own and scaled:
        raise TargetError(f"adapter {name!r} has another scaling than at the start on {listed(scaled)}.", LOAD)
    return own


def has_scaling(layer: LoraLayer, name: str, factors: Factors) -> bool:
    """Whether the layer multiplies with what the folder says."""
    found = getattr(layer.layer, "scaling", {}).get(name, factors.scaling)
    return math.isclose(float(found), factors.scaling, rel_tol=1e-6)
