"""The LoRA layers of a model in memory, whatever is wrapped around them, and whether they are those of a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.pooled import unpooled
from ..errors import TargetError, listed
from ..methods import RULES
from ..output.manifest import Manifest, ModuleRecord
from .folder import manifest_of

# Parts that torch.compile, FSDP and activation checkpointing put into the paths of modules and parameters.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PEFT = "base_model.model."
LOAD = "Load base and adapter as the README.md of the folder shows."


@dataclass(frozen=True)
class LoraLayer:
    """A layer of PEFT (`layer.lora_A`, `layer.lora_B`: adapter name -> module). path: from the model that PEFT was
    given, where that is known, else from the outermost module; without wrappers."""

    path: str
    whole: bool
    layer: nn.Module

    @property
    def adapters(self) -> list[str]:
        held = [*self._held("lora_A"), *(getattr(self.layer, "lora_embedding_A", None) or ())]
        return list(dict.fromkeys(held))

    def _held(self, kind: str) -> dict[str, nn.Module]:
        below = getattr(self.layer, kind, None)
        return dict(below.named_children()) if isinstance(below, nn.Module) else {}

    def module(self, modules: Container[str]) -> str | None:
        """Which of `modules` this layer is: the path itself, or, below modules of the user's own, its end."""
        if self.whole:
            return self.path if self.path in modules else None
        parts = self.path.split(".")
        return next((tail for at in range(len(parts)) if (tail := ".".join(parts[at:])) in modules), None)

    def factor(self, kind: str, adapter: str) -> Tensor | None:
        """lora_A, lora_B or lora_magnitude_vector of an adapter, as it lies in memory; of QA-LoRA the A that W could
        read its inputs with, as files are read."""
        held: Tensor | None = getattr(self._held(kind).get(adapter), "weight", None)
        size = (getattr(self.layer, "qalora_group_size", None) or {}).get(adapter)
        if held is None or not size or kind != "lora_A" or in_memory(held) is None:
            return held
        return unpooled(held, int(size))

    def modules(self, kind: str) -> list[nn.Module]:
        """lora_A or lora_B of every adapter."""
        return list(self._held(kind).values())

    def parameters(self, *kinds: str) -> Iterator[nn.Parameter]:
        """Those below `lora_A`, ... of every adapter."""
        for kind in kinds:
            for held in self.modules(kind):
                yield from held.parameters()

    @property
    def base(self) -> Tensor | None:
        """The weight under the adapters."""
        below: Callable[[], nn.Module] | None = getattr(self.layer, "get_base_layer", None)
        weight = getattr(below(), "weight", None) if below else None
        return weight if isinstance(weight, Tensor) else None


def plain_path(name: str) -> str:
    """A path without what wrappers put into it."""
    return _WRAPPERS.sub("", name)


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """All of them, in the order of the model."""
    found = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "lora_A", None), nn.Module):
            _, whole, rest = plain_path(name).rpartition(_PEFT)
            found.append(LoraLayer(rest, bool(whole), module))
    return found


def in_memory(tensor: Tensor | None) -> Tensor | None:
    """The tensor on the CPU, None where its numbers are not all here: on the meta device, sharded (DTensor, FSDP,
    ZeRO-3), or in a type of its own, as quantised weights are."""
    if tensor is None or type(tensor) not in (Tensor, nn.Parameter) or hasattr(tensor, "ds_id"):
        return None
    return None if tensor.is_meta or not tensor.numel() else tensor.detach().cpu()


def require_loaded(model: nn.Module, adapter_dir: str | Path) -> None:
    """The cheap part of `check_start`, which holds during training as well: LoRA on every module of the manifest and on
    no others, and B nowhere zero where the folder's is not. Raises TargetError, CheckpointError as `manifest_of`."""
    records = manifest_of(adapter_dir).modules
    layers = lora_layers(model)
    _, faults = nearest(layers, {name: structure(layers, name, records) for name in names_of(layers)}, records)
    if faults:
        raise TargetError(f"{adapter_dir}: {'; '.join(faults)}.", LOAD)


def moved_modules(manifest: Manifest) -> set[str]:
    """The modules whose A and B hold a part of the original."""
    return {record.module for record in manifest.modules if RULES[record.rule].moved}


def names_of(layers: Sequence[LoraLayer]) -> list[str]:
    """The adapters of a model."""
    return list(dict.fromkeys(name for layer in layers for name in layer.adapters))


def nearest(
    layers: Sequence[LoraLayer], faults: Mapping[str, list[str]], records: Sequence[ModuleRecord]
) -> tuple[str, list[str]]:
    """The adapter that fits best, and what is wrong with it; one that is there in no layer, where there is none."""
    return min(faults.items(), key=lambda item: len(item[1])) if faults else ("", structure(layers, "", records))


def structure(layers: Sequence[LoraLayer], adapter: str, records: Sequence[ModuleRecord]) -> list[str]:
    """What is wrong with the modules of one adapter, one text a kind."""
    modules = {record.module for record in records}
    # A component that is dead starts at zero: B of a module where all are may be zero for good.
    filled = {one.module for one in records if RULES[one.rule].moved and one.dead < one.rank}
    held = [layer for layer in layers if adapter in layer.adapters]
    places = [(layer, layer.module(modules)) for layer in held]
    lacking = sorted(modules - {module for _, module in places})
    strange = [layer.path for layer, module in places if module is None]
    empty = [module for layer, module in places if module in filled and _is_zero(layer.factor("lora_B", adapter))]
    told = (
        (lacking, "the model has no LoRA on {}"),
        (strange, "the model has LoRA on {}, for which the folder has none, so that it is random"),
        (empty, "the model has a random LoRA on {}, whose tensors did not arrive"),
    )
    return [text.format(listed(paths)) for paths, text in told if paths]


def _is_zero(B: Tensor | None) -> bool:
    if B is None or type(B) not in (Tensor, nn.Parameter) or B.is_meta or B.ndim != 2 or not B.numel():
        return False  # not all here: a shard of B may well be zero
    return not bool(torch.any(B.detach() != 0))
