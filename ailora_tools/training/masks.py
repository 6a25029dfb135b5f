"""Training adapters on fused modules: keep what belongs to W^Q, W^V and nothing else apart.

In a fused module B starts with B_q in the rows of W^Q and its own columns, B_v likewise, and zeros elsewhere. Nothing
in PEFT keeps those zeros: after the first step the rows of W^K change too, and A_v reaches W^Q. A mask on the gradient
of B does; zeros then stay zeros under any optimiser that scales gradients, with weight decay too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..output.manifest import ModuleRecord
from ..surgery.blocks import block_mask
from .folder import manifest_of
from .layers import lora_layers, require_loaded

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


def mask_fused_gradients(model: nn.Module, adapter_dir: str | Path) -> list[RemovableHandle]:
    """Confine training to the blocks of W^Q and W^V in every fused module of `adapter_dir`.

    `model` is the PeftModel that was loaded from `adapter_dir` (`.../ailora_init`) for training. Returns one handle a
    module, whose `remove()` takes the mask away again; none where nothing is fused. Masks are (out, r), in the dtype of
    B. Not for parameters that are sharded after the call (FSDP).

    Raises CheckpointError if there is no manifest beside `adapter_dir`, TargetError as `lr_groups`.
    """
    fused: dict[str, list[ModuleRecord]] = {}
    for record in manifest_of(adapter_dir).modules:
        if record.part is not None:
            fused.setdefault(record.module, []).append(record)
    require_loaded(model, adapter_dir)
    return [
        parameter.register_hook(_Mask(block_mask(fused[module]).to(parameter)))  # type: ignore[no-untyped-call]
        for layer in lora_layers(model)
        if (module := layer.module(fused))
        for parameter in layer.parameters("lora_B")
        if parameter.requires_grad
    ]


class _Mask:
    """Multiplies a gradient; follows it to its device."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, gradient: Tensor) -> Tensor:
        if self.mask.device != gradient.device:
            self.mask = self.mask.to(gradient.device)
        return gradient * self.mask
