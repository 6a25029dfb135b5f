"""Tensors that checkpoints hold and no class loads, added to a saved model as published files have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools.targets.projections import Plan, Target


def split_at_layer(target: Target) -> tuple[str, str]:
    """What stands before and behind the number of the layer in the name of the tensor."""
    before, _, behind = target.tensor.partition(f".{target.layer}.")
    return before, behind


def further_layers(tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Copies of the last layer of each stack under the next number, as for multi-token prediction."""
    added = {}
    for stack in {target.stack for target in plan.targets}:
        last = max((target for target in plan.targets if target.stack == stack), key=lambda target: target.layer)
        before, _ = split_at_layer(last)
        held = {int(name.removeprefix(f"{before}.").split(".")[0]) for name in tensors if name.startswith(f"{before}.")}
        old, new = (f"{before}.{number}." for number in (last.layer, max(held) + 1))
        added |= {new + name.removeprefix(old): value for name, value in tensors.items() if name.startswith(old)}
    return added


def prediction_layers(tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """A layer under `mtp.`, as Qwen publishes it."""
    named = {f"mtp.layers.0.{split_at_layer(target)[1]}": tensors[target.tensor] for target in plan.targets}
    return {name: value.clone() for name, value in named.items()}


def add(folder: Path, added: Mapping[str, Tensor]) -> None:
    """Write them into the file beside the others."""
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **{name: value.clone() for name, value in added.items()}}
    save_file(tensors, path, {"format": "pt"})


def restate(folder: Path, change: Mapping[str, Any], within: str = "", without: Iterable[str] = ()) -> None:
    """Change fields of config.json, those in the part `within` of it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    part = config[within] if within else config
    part.update(change)
    for name in without:
        part.pop(name, None)
    path.write_text(json.dumps(config))
