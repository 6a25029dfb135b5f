"""What is compared: how each arm starts, which parameters it trains, and its ladder of learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ailora_tools import freeze_b, initialize, lr_groups

RANK = 8
_ADAPTERS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_FULL = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


@dataclass(frozen=True)
class Arm:
    """`init`: options of `initialize`, None for arms without an adapter. `rates`: the ladder, of which `first` are
    tried before it is climbed further."""

    name: str
    init: Mapping[str, Any] | None
    balanced: bool = False
    rates: tuple[float, ...] = _ADAPTERS
    first: tuple[int, int] = (1, 5)


ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("lora", {"method": "lora"}),
        Arm("rslora", {"method": "lora", "rslora": True}),
        Arm("pissa", {"method": "pissa"}, first=(0, 4)),
        Arm("milora", {"method": "milora"}),
        Arm("olora", {"method": "olora"}, first=(0, 4)),
        Arm("nlora", {"method": "nlora"}, first=(0, 4)),
        Arm("dora", {"method": "lora", "dora": True}),
        Arm("mica", {"method": "mica"}),
        Arm("ailora", {"method": "ailora"}, first=(0, 4)),
        Arm("ailora-balanced", {"method": "ailora"}, balanced=True, first=(0, 4)),
        Arm("ailora-reversed", {"method": "ailora-reversed"}, first=(0, 4)),
        Arm("bitfit", None, rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), first=(1, 5)),
        Arm("full", None, rates=_FULL, first=(0, 4)),
    )
}


@dataclass(frozen=True)
class Started:
    """The backbone ready to train, its parameter groups at this learning rate, and the base it stands on."""

    backbone: nn.Module
    groups: list[dict[str, Any]]
    base: Path


def start(arm: Arm, model: Path, folder: Path, lr: float, seed: int, load: Any) -> Started:
    """`load(folder)` is the backbone of a checkpoint; `folder` keeps what `init` writes for this arm and seed."""
    if arm.init is None:
        backbone = load(model)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad = arm.name == "full" or name.endswith(".bias")
        return Started(backbone, _one_group(backbone, lr), model)
    if not (folder / "ailora.json").exists():
        initialize(model, RANK, output=folder, seed=seed, overwrite=True, **arm.init)
    base = folder if (folder / "config.json").exists() else model
    adapter = folder / "ailora_init"
    backbone = PeftModel.from_pretrained(load(base), adapter, is_trainable=True)
    freeze_b(backbone, adapter)
    return Started(backbone, lr_groups(backbone, adapter, lr) if arm.balanced else _one_group(backbone, lr), base)


def _one_group(backbone: nn.Module, lr: float) -> list[dict[str, Any]]:
    return [{"params": [value for value in backbone.parameters() if value.requires_grad], "lr": lr}]


def count(backbone: nn.Module) -> int:
    """Trained parameters."""
    return sum(value.numel() for value in backbone.parameters() if value.requires_grad)


def seeded(seed: int) -> torch.Generator:
    """Random numbers of one seed, for the order of the data: the same for every arm."""
    return torch.Generator().manual_seed(seed)
