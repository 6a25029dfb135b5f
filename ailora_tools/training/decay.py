"""Weight decay for adapters that hold a part of the original: towards the start, where a plain LoRA decays to zero."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..adapters.folder import open_adapter
from ..errors import OptionError, TargetError, listed
from .folder import manifest_of, start_folder
from .layers import lora_layers, moved_modules, require_loaded
from .sharded import placed_like

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


def decay_to_start(
    optimizer: torch.optim.Optimizer, model: nn.Module, adapter_dir: str | Path, weight_decay: float
) -> RemovableHandle:
    """Pull A and B towards the start in `adapter_dir` (`.../ailora_init`): decoupled, as in AdamW (arXiv 1711.05101),
    before every step of `optimizer`: p - lr weight_decay (p - p_start).

    As weight decay of a plain LoRA does, it pulls the model towards the original. `optimizer` is a torch optimiser over
    the parameters of `model`, whose own weight decay is 0 for them, as in the groups of `lr_groups`. The handle's
    `remove()` ends it. Needs the memory of the start.

    Raises OptionError for a weight decay below 0, or where the optimiser decays them as well; TargetError where they
    are not in it or have another shape; else as `lr_groups`.

    >>> optimizer = torch.optim.AdamW(lr_groups(model, "start/ailora_init", lr=1e-4))
    >>> handle = decay_to_start(optimizer, model, "start/ailora_init", weight_decay=0.01)
    >>> handle.remove()
    """
    if not weight_decay >= 0:
        raise OptionError(f"weight_decay is {weight_decay}, expected 0 or more.")
    starts = _starts(model, adapter_dir)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    if lacking := [name for name, parameter, _ in starts if id(parameter) not in groups]:
        hint = "Make the optimiser over the parameters of this model, after whatever shards or wraps it."
        raise TargetError(f"{adapter_dir}: not in the optimiser: {listed(lacking)}.", hint)
    if twice := [name for name, parameter, _ in starts if groups[id(parameter)].get("weight_decay")]:
        hint = "Give it the groups of `lr_groups`, or weight_decay=0."
        raise OptionError(f"The optimiser decays towards zero what is to decay to the start: {listed(twice)}.", hint)
    known = {id(parameter): start for _, parameter, start in starts}

    @torch.no_grad()
    def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and id(parameter) in known:
                    start = placed_like(known[id(parameter)].to(parameter.device, parameter.dtype), parameter)
                    parameter.sub_((parameter - start) * (group["lr"] * weight_decay))

    return optimizer.register_step_pre_hook(decay)


def _starts(model: nn.Module, adapter_dir: str | Path) -> list[tuple[str, nn.Parameter, Tensor]]:
    """Every A and B that trains and holds a part of the original: its name, itself, and the start in its dtype."""
    moved = moved_modules(manifest_of(adapter_dir))
    require_loaded(model, adapter_dir)
    adapter = open_adapter(start_folder(adapter_dir))
    found = []
    for layer in lora_layers(model):
        if module := layer.module(moved):
            for kind, stored in (("lora_A", adapter.modules[module].A), ("lora_B", adapter.modules[module].B)):
                for parameter in layer.parameters(kind):
                    if not parameter.requires_grad:
                        continue
                    if parameter.shape != stored.shape:
                        shapes = f"{tuple(parameter.shape)} in the model, {stored.shape} in the file"
                        raise TargetError(f"{module}.{kind} has the shape {shapes}.", "Call it on whole parameters.")
                    start = adapter.load(stored).to(parameter.device, parameter.dtype)
                    found.append((f"{module}.{kind}", parameter, start))
    return found
