"""What a training loop asks of a folder of `init`: parameter groups of balanced motion, and what stays frozen."""

from __future__ import annotations

import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import TargetError, listed
from ..methods import RULES
from ..output.lr_groups import read_lr_groups
from .folder import init_folder, manifest_of
from .layers import lora_layers, moved_modules, require_loaded
from .start import require_taken_out


def lr_groups(model: nn.Module, adapter_dir: str | Path, lr: float) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimiser, under which W^Q and W^V move alike at the first step.

    `model` is the PeftModel loaded from `adapter_dir` (`.../ailora_init`) for training. Every trainable parameter is in
    one group; A and B get `lr` times the factor in lr_groups.json, the others (heads, biases, DoRA's magnitudes) `lr`.

    Weight decay is 0 for A and B that hold a part of the original, and for DoRA's magnitudes, which are the norms of
    its rows: decay moves the model away from the original there, where in a plain LoRA it moves it back. The others
    keep what the optimiser is given. `decay_to_start` decays towards the start instead.

    The best `lr` of a start that holds a part of the weights lies below that of plain LoRA: by about 10 times for
    principal components, 3.2 for minor ones, 18 for OLoRA (arXiv 2602.04998).

    Where several projections share a module they share A and B and so one learning rate, which cannot make them move
    alike: a warning says so.

    Raises CheckpointError if there is no lr_groups.json or manifest beside `adapter_dir`, TargetError where LoRA is not
    on those modules, or at random, or on the original of `--no-base` without `attach` or another way to take its part
    out (`check_start` looks closer; this holds for resumed training, too).

    >>> optimizer = torch.optim.AdamW(lr_groups(model, "start/ailora_init", lr=1e-3))
    >>> all(group["lr"] > 0 for group in optimizer.param_groups)
    True
    """
    document = read_lr_groups(init_folder(adapter_dir))
    scales = document.modules
    if shared := document.shared:
        text = f"{len(shared)} modules hold several projections, which move by one learning rate: {listed(shared)}."
        warnings.warn(text, UserWarning, stacklevel=2)
    require_loaded(model, adapter_dir)
    require_taken_out(model, adapter_dir)
    factors = _modules_of(model, scales, "lora_A", "lora_B")
    original = {
        *_modules_of(model, moved_modules(manifest_of(adapter_dir)), "lora_A", "lora_B"),
        *_modules_of(model, scales, "lora_magnitude_vector"),
    }
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    met = set()
    for parameter in model.parameters():
        if parameter.requires_grad:
            module = factors.get(id(parameter))
            met.add(module)
            kind = (scales[module] if module else 1.0, id(parameter) in original)
            found.setdefault(kind, []).append(parameter)
    if lacking := sorted(set(scales) - met):
        raise TargetError(
            f"{adapter_dir}: the model has no trainable LoRA on {listed(lacking)}.",
            "Load the adapter for training: PeftModel.from_pretrained(base, adapter_dir, is_trainable=True).",
        )
    return [
        {"params": parameters, "lr": lr * scale, **({"weight_decay": 0.0} if kept else {})}
        for (scale, kept), parameters in found.items()
    ]


def freeze_a(model: nn.Module, adapter_dir: str | Path) -> int:
    """Take A out of training where the method wants it frozen (PiCa, arXiv 2505.20211); how many matrices that are.

    As `freeze_b` in all else.

    >>> freeze_a(model, "start/ailora_init")  # the method is ailora here, which trains A
    0
    """
    return _freeze(model, adapter_dir, "A")


def freeze_b(model: nn.Module, adapter_dir: str | Path) -> int:
    """Take B out of training where the method wants it frozen (MiCA, arXiv 2604.01694); how many matrices that are.

    Call it once, before the optimiser is made, on the PeftModel loaded from `adapter_dir`. Elsewhere it does nothing.

    Raises CheckpointError if there is no manifest beside `adapter_dir`, TargetError as `lr_groups`.

    >>> freeze_b(model, "start/ailora_init")  # the method is ailora here, which trains B
    0
    """
    return _freeze(model, adapter_dir, "B")


def _freeze(model: nn.Module, adapter_dir: str | Path, factor: str) -> int:
    wanted = {record.module for record in manifest_of(adapter_dir).modules if RULES[record.rule].frozen == factor}
    require_loaded(model, adapter_dir)
    met = set()
    for layer in lora_layers(model):
        if module := layer.module(wanted):
            met.add(module)
            for parameter in layer.parameters(f"lora_{factor}"):
                parameter.requires_grad = False
    return len(met)


def _modules_of(model: nn.Module, modules: Container[str], *kinds: str) -> dict[int, str]:
    """The module of every parameter of these kinds, such as lora_A, by the identity of the parameter."""
    return {
        id(parameter): module
        for layer in lora_layers(model)
        if (module := layer.module(modules))
        for parameter in layer.parameters(*kinds)
    }
