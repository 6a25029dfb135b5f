"""Tiny models with an adapter in PEFT: written, loaded, trained a little, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ailora_tools import initialize
from ailora_tools.output.names import ADAPTER_FOLDER, OFFSET_FOLDER
from kit.families import FAMILIES, FUSED, build, output

ALL = {**FAMILIES, **FUSED}


def write_model(name: str, folder: Path) -> tuple[nn.Module, Tensor]:
    """The model of a family, saved in `folder`, and what it puts out."""
    model = build(name)
    model.save_pretrained(folder)
    return model, output(model, ALL[name].inputs())


def original(name: str, folder: Path) -> nn.Module:
    """The model that `prepare` wrote, before any surgery."""
    return type(build(name)).from_pretrained(folder / "model").eval()  # type: ignore[attr-defined,no-any-return]


def load_start(model: nn.Module, folder: Path, source: Path, **options: object) -> PeftModel:
    """The adapter that `init` wrote to `folder`, on the base beside it, or on `source` where it wrote none."""
    base = folder if (folder / "config.json").exists() else source
    return PeftModel.from_pretrained(
        type(model).from_pretrained(base).eval(), folder / ADAPTER_FOLDER, **options
    ).eval()


def load_with_offset(base: nn.Module, folder: Path) -> PeftModel:
    """Both adapters of `init --no-base` on the original, the offset frozen, as the card says it."""
    model = PeftModel.from_pretrained(base, folder / ADAPTER_FOLDER, is_trainable=True)
    model.load_adapter(folder / OFFSET_FOLDER, adapter_name="offset")
    model.base_model.set_adapter(["default", "offset"])
    for name, parameter in model.named_parameters():
        if ".offset." in name:
            parameter.requires_grad = False
    return model.eval()


def train(model: nn.Module, name: str, steps: int = 3) -> None:
    """A few steps of AdamW towards another output."""
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        with torch.enable_grad():
            result = model(**ALL[name].inputs())
            loss = next(value for value in result.values() if isinstance(value, Tensor)).float().square().mean()
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def prepare(name: str, folder: Path, **options: Any) -> tuple[Path, Tensor]:
    """A model, `init` on it, and a trained adapter in folder/trained; what the trained model puts out."""
    build(name).save_pretrained(folder / "model")
    made = initialize(folder / "model", 2, output=folder / "init", **options)
    base = type(build(name)).from_pretrained(folder / "init").eval()
    model = PeftModel.from_pretrained(base, made.adapter, is_trainable=True)
    train(model, name)
    model.save_pretrained(folder / "trained")
    return folder / "trained", output(model, ALL[name].inputs())


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """No entry further off than `tolerance` of the largest one."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
