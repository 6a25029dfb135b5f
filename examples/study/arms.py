"""What is compared: how each arm starts, which parameters it trains, and its ladder of learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from ailora_tools import bitfit, freeze_b, initialize, lr_groups, train_biases

RANK = 8
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of learning rates, one for all arms
_LOW, _MIDDLE, _HIGH = LADDER[0:4], LADDER[2:6], LADDER[3:7]


@dataclass(frozen=True)
class Arm:
    """`init`: options of `initialize`, None for arms without an adapter. `first`: the learning rates to begin with;
    the study climbs from there while the best one is at an end."""

    name: str
    init: Mapping[str, Any] | None
    first: tuple[float, ...]
    balanced: bool = False


ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("lora", {"method": "lora"}, _HIGH),
        Arm("rslora", {"method": "lora", "rslora": True}, _HIGH),
        Arm("pissa", {"method": "pissa"}, _MIDDLE),
        Arm("milora", {"method": "milora"}, _HIGH),
        Arm("olora", {"method": "olora"}, _MIDDLE),
        Arm("nlora", {"method": "nlora"}, _MIDDLE),
        Arm("dora", {"method": "lora", "dora": True}, _HIGH),
        Arm("mica", {"method": "mica"}, _HIGH),
        Arm("ailora", {"method": "ailora"}, _MIDDLE),
        Arm("ailora-balanced", {"method": "ailora"}, _MIDDLE, balanced=True),
        Arm("ailora-reversed", {"method": "ailora-reversed"}, _MIDDLE),
        Arm("ailora-orthonormal", {"method": "ailora-orthonormal"}, _HIGH),
        Arm("rlmo", {"method": "rlmo"}, _HIGH),
        Arm("bitfit", None, _HIGH),
        Arm("full", None, _LOW),
    )
}


@dataclass(frozen=True)
class Started:
    """The backbone ready to train, its parameter groups at this learning rate, and the base it stands on."""

    backbone: nn.Module
    groups: list[dict[str, Any]]
    base: Path

    @property
    def trained(self) -> int:
        """Trained parameters."""
        return sum(value.numel() for value in self.backbone.parameters() if value.requires_grad)


def start(arm: Arm, model: Path, folder: Path, lr: float, seed: int, load: Callable[[Path], nn.Module]) -> Started:
    """`load(folder)` is the backbone of a checkpoint; `folder` is where `init` writes. The residual base is float32."""
    if arm.init is None:
        backbone = load(model)
        if arm.name == "bitfit":
            train_biases(backbone, bitfit(model, folder).folder)
        return Started(backbone, _one_group(backbone, lr), model)
    initialize(model, RANK, output=folder, seed=seed, base_dtype="float32", **arm.init)
    base = folder if (folder / "config.json").exists() else model
    adapter = folder / "ailora_init"
    backbone = PeftModel.from_pretrained(load(base), adapter, is_trainable=True)
    freeze_b(backbone, adapter)
    return Started(backbone, lr_groups(backbone, adapter, lr) if arm.balanced else _one_group(backbone, lr), base)


def _one_group(backbone: nn.Module, lr: float) -> list[dict[str, Any]]:
    return [{"params": [value for value in backbone.parameters() if value.requires_grad], "lr": lr}]
