"""What a training loop asks of a folder of `init`: parameter groups of balanced motion, and what stays frozen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import TargetError, listed
from ..methods import RULES
from ..output.lr_groups import read_lr_groups
from .folder import init_folder, manifest_of


def lr_groups(model: nn.Module, adapter_dir: str | Path, lr: float) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimiser, under which W^Q and W^V move alike at the first step.

    `model` is the PeftModel loaded from `adapter_dir` (`.../ailora_init`) for training. Every trainable parameter is in
    one group; A and B get `lr` times the factor in lr_groups.json, the others (heads, biases, DoRA's magnitudes) `lr`.

        optimizer = torch.optim.AdamW(lr_groups(model, adapter_dir, lr=1e-3))

    Where several projections share a module they share A and B and so one learning rate, which cannot make them move
    alike: a warning says so.

    Raises CheckpointError if there is no lr_groups.json beside `adapter_dir`, TargetError for modules the model lacks.
    """
    document = read_lr_groups(init_folder(adapter_dir))
    scales = document.modules
    if shared := document.shared:
        text = f"{len(shared)} modules hold several projections, which move by one learning rate: {listed(shared)}."
        warnings.warn(text, UserWarning, stacklevel=2)
    found: dict[float, list[nn.Parameter]] = {}
    met = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = _module_of(name, scales)
            met.add(module)
            found.setdefault(scales[module] if module else 1.0, []).append(parameter)
    _require_all(set(scales) - met, adapter_dir)
    return [{"params": parameters, "lr": lr * scale} for scale, parameters in found.items()]


def freeze_b(model: nn.Module, adapter_dir: str | Path) -> int:
    """Take B out of training where the method wants it frozen (MiCA, arXiv 2604.01694); how many matrices that are.

    Call it once, before the optimiser is made, on the PeftModel loaded from `adapter_dir`. Elsewhere it does nothing.

    Raises CheckpointError if there is no manifest beside `adapter_dir`, TargetError for modules the model lacks.
    """
    records = manifest_of(adapter_dir).modules
    wanted = {record.module: 1.0 for record in records if RULES[record.rule].frozen_b}
    met = set()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name and (module := _module_of(name, wanted)):
            met.add(module)
            parameter.requires_grad = False
    _require_all(set(wanted) - met, adapter_dir)
    return len(met)


def _module_of(name: str, modules: Mapping[str, float]) -> str | None:
    """The module whose A or B this is."""
    path, found, _ = name.partition(".lora_A.") if ".lora_A." in name else name.partition(".lora_B.")
    parts = path.split(".") if found else []
    return next((tail for at in range(len(parts)) if (tail := ".".join(parts[at:])) in modules), None)


def _require_all(missing: set[str], adapter_dir: str | Path) -> None:
    if missing:
        raise TargetError(
            f"{adapter_dir}: the model has no trainable LoRA on {listed(sorted(missing))}.",
            "Load the adapter first: PeftModel.from_pretrained(base, adapter_dir, is_trainable=True).",
        )
