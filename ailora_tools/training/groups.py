"""What a training loop asks of a folder of `init`: parameter groups of balanced motion, and what stays frozen."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint.files import LocalFiles
from ..checkpoint.index import read_json
from ..errors import TargetError, listed
from ..methods import RULES
from ..output.lr_groups import LR_GROUPS
from ..output.manifest import read_manifest


def lr_groups(model: nn.Module, adapter_dir: str | Path, lr: float) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimiser, under which W^Q and W^V move alike at the first step.

    `model` is the PeftModel loaded from `adapter_dir` (`.../ailora_init`) for training. Every trainable parameter is in
    one group; A and B get `lr` times the factor in lr_groups.json, the others (heads, biases, DoRA's magnitudes) `lr`.

        optimizer = torch.optim.AdamW(lr_groups(model, adapter_dir, lr=1e-3))

    Where several projections share a module they share A and B and so one learning rate, which cannot make them move
    alike: a warning says so.

    Raises CheckpointError if there is no lr_groups.json beside `adapter_dir`, TargetError for modules the model lacks.
    """
    document = read_json(LocalFiles(Path(adapter_dir).expanduser().resolve().parent), LR_GROUPS)
    scales = document["modules"]
    if shared := document["shared"]:
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


def train_biases(model: nn.Module, folder: str | Path) -> list[nn.Parameter]:
    """Freeze all of `model` but the biases in bitfit.json of `folder`; those biases, for the optimiser.

    Biases of the checkpoint that the model lacks, such as those of a head, are named in a warning.

    Raises CheckpointError if there is no bitfit.json, TargetError, and changes nothing, if the model has none of them.
    """
    wanted = read_json(LocalFiles(Path(folder).expanduser()), "bitfit.json")["biases"]
    named = dict(model.named_parameters())
    places = _places(wanted, named)
    found = {name for name in places.values() if name in named}
    if not found:
        raise TargetError(
            f"{folder}: the model has none of its {len(wanted)} biases.", "Load the model it was made for."
        )
    lacking = [name for name in wanted if places[name] not in named]
    if lacking:
        text = f"{folder}: {len(lacking)} of {len(wanted)} biases are not in the model: {listed(lacking)}."
        warnings.warn(text, UserWarning, stacklevel=2)
    for name, parameter in named.items():
        parameter.requires_grad = name in found
    return [parameter for name, parameter in named.items() if name in found]


def _places(wanted: Sequence[str], named: Iterable[str]) -> dict[str, str]:
    """Name in the checkpoint -> name in the model. A model with a head, without one or inside another module has
    another prefix before all names: the one that fits most names is taken. Old files call the bias of a LayerNorm beta.
    """
    modern = {name: re.sub(r"\bbeta$", "bias", name) for name in wanted}
    alike: dict[str, list[str]] = {}
    for other in named:
        alike.setdefault(_end(other), []).append(other)
    ways = Counter(_way(name, other) for name in modern.values() for other in alike.get(_end(name), ()))
    (old, new), _ = ways.most_common(1)[0] if ways else (("", ""), 0)
    return {name: new + path.removeprefix(old) if path.startswith(old) else path for name, path in modern.items()}


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _way(name: str, other: str) -> tuple[str, str]:
    """How two names with the same end begin, before all that they share: such as ("bert.", "")."""
    parts, others = name.split("."), other.split(".")
    shared = next(
        (at for at, (one, two) in enumerate(zip(reversed(parts), reversed(others), strict=False)) if one != two),
        min(len(parts), len(others)),
    )
    heads = (part[: len(part) - shared] for part in (parts, others))
    first, second = ("".join(f"{word}." for word in head) for head in heads)
    return first, second
