"""What a training loop asks of a folder of `init`: parameter groups of balanced motion, and what stays frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .checkpoint.files import LocalFiles
from .checkpoint.index import read_json
from .errors import TargetError, listed
from .methods import RULES
from .motion import FILE
from .output.manifest import read_manifest


def lr_groups(model: nn.Module, adapter_dir: str | Path, lr: float) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimiser, under which W^Q and W^V move alike at the first step.

    `model` is the PeftModel loaded from `adapter_dir` (`.../ailora_init`) for training. Every trainable parameter is in
    one group; those of an adapter get `lr` times the factor in lr_groups.json, the others (heads, biases) `lr` itself.

        optimizer = torch.optim.AdamW(lr_groups(model, adapter_dir, lr=1e-3))

    Raises CheckpointError if there is no lr_groups.json beside `adapter_dir`, TargetError for modules the model lacks.
    """
    scales = read_json(LocalFiles(Path(adapter_dir).expanduser().resolve().parent), FILE)["modules"]
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
    records = read_manifest(Path(adapter_dir).expanduser().resolve().parent).modules
    wanted = {record.module: 1.0 for record in records if RULES[record.rule].frozen_b}
    met = set()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name and (module := _module_of(name, wanted)):
            met.add(module)
            parameter.requires_grad = False
    _require_all(set(wanted) - met, adapter_dir)
    return len(met)


def _module_of(name: str, modules: Mapping[str, float]) -> str | None:
    """The module whose LoRA parameter this is."""
    path = name.split(".lora_")[0] if ".lora_" in name else ""
    parts = path.split(".")
    return next((tail for at in range(len(parts)) if (tail := ".".join(parts[at:])) in modules), None)


def _require_all(missing: set[str], adapter_dir: str | Path) -> None:
    if missing:
        raise TargetError(
            f"{adapter_dir}: the model has no trainable LoRA on {listed(sorted(missing))}.",
            "Load the adapter first: PeftModel.from_pretrained(base, adapter_dir, is_trainable=True).",
        )


def train_biases(model: nn.Module, folder: str | Path) -> list[nn.Parameter]:
    """Freeze all of `model` but the biases in bitfit.json of `folder`; those biases, for the optimiser.

    Raises CheckpointError if there is no bitfit.json, TargetError, and changes nothing, if the model has none of them.
    """
    wanted = read_json(LocalFiles(Path(folder).expanduser()), "bitfit.json")["biases"]
    ends = tuple(f".{name}" for name in wanted)
    named = dict(model.named_parameters())
    # The base model of a checkpoint with a head, and a head around a base model, differ by a prefix.
    found = [name for name in named if f".{name}".endswith(ends) or any(end.endswith(f".{name}") for end in ends)]
    if not found:
        raise TargetError(
            f"{folder}: the model has none of its {len(wanted)} biases.", "Load the model it was made for."
        )
    for name, parameter in named.items():
        parameter.requires_grad = name in found
    return [named[name] for name in found]
