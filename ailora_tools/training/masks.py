"""Training adapters on fused modules: keep what belongs to W^Q, W^V and nothing else apart.

In a fused module B starts with B_q in the rows of W^Q and its own columns, B_v likewise, and zeros elsewhere. Nothing
in PEFT keeps those zeros: after the first step the rows of W^K change too, and A_v reaches W^Q. A mask on the gradient
of B does; zeros then stay zeros under any optimiser that scales gradients, with weight decay too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import ref

from torch import Tensor, nn

from ..errors import TargetError
from ..output.manifest import ModuleRecord
from ..surgery.blocks import block_mask
from .folder import manifest_of
from .layers import lora_layers, require_loaded
from .sharded import placed_like


def mask_fused_gradients(model: nn.Module, adapter_dir: str | Path) -> list[Mask]:
    """Confine training to the blocks of W^Q and W^V in every fused module of `adapter_dir`.

    `model` is the PeftModel that was loaded from `adapter_dir` (`.../ailora_init`) for training; that may be wrapped
    by DDP or sharded (FSDP, `fully_shard`, ZeRO-3), before or after. Returns one mask for each B, whose `remove()`
    takes it away again; none where nothing is fused.

    Raises CheckpointError if there is no manifest beside `adapter_dir`, TargetError as `lr_groups`; in the backward
    pass, TargetError where a gradient has not the shape of B, so that it cannot be masked.

    >>> mask_fused_gradients(model, "start/ailora_init")  # nothing is fused in this model
    []
    """
    fused: dict[str, list[ModuleRecord]] = {}
    for record in manifest_of(adapter_dir).modules:
        if record.part is not None:
            fused.setdefault(record.module, []).append(record)
    require_loaded(model, adapter_dir)
    return [
        Mask(f"{module}.lora_B", held, block_mask(fused[module]))
        for layer in lora_layers(model)
        if (module := layer.module(fused))
        for held in layer.modules("lora_B")
        if any(parameter.requires_grad for parameter in held.parameters())
    ]


class Mask:
    """Multiplies the gradient of B by `mask` (out, r).

    What shards a model puts other tensors into the place of its parameters, and hooks do not move with them: FSDP
    computes with a whole B that it makes for the pass. So the weight is looked at before every use, and one that has
    no hook yet gets it.
    """

    def __init__(self, name: str, module: nn.Module, mask: Tensor) -> None:
        self.name, self.mask = name, mask
        self._covered: ref[Tensor] | None = None
        self._removed = False
        self._before = module.register_forward_pre_hook(self._cover)
        self._cover(module, ())

    def remove(self) -> None:
        """Let all of B be trained."""
        self._before.remove()
        self._removed = True

    def _cover(self, module: nn.Module, _: Any) -> None:
        weight = module.weight
        if isinstance(weight, Tensor) and weight.requires_grad and (not self._covered or self._covered() is not weight):
            self._covered = ref(weight)
            weight.register_hook(self._masked)  # type: ignore[no-untyped-call]

    def _masked(self, gradient: Tensor) -> Tensor:
        if self._removed:
            return gradient
        if gradient.shape != self.mask.shape:
            raise TargetError(
                f"{self.name}: its gradient has shape {tuple(gradient.shape)}, expected {tuple(self.mask.shape)}, so "
                "that what belongs to no adapter cannot be kept at zero.",
                "Train it unsharded, by DDP, or by `torch.distributed.fsdp.fully_shard`.",
            )
        if (self.mask.device, self.mask.dtype) != (gradient.device, gradient.dtype):
            self.mask = self.mask.to(gradient.device, gradient.dtype)
        return gradient * placed_like(self.mask, gradient)
