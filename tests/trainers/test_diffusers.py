"""diffusers' own LoRA loading on a start of a small UNet: `load_lora_adapter`, `save_lora_adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from kit.trainers import HERE, apart
from torch import Tensor

from ailora_tools import convert, export, initialize
from ailora_tools.output.names import RESULT

PACKAGES = ("diffusers", "peft")
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet") / "model"
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24, attention_head_dim=8, norm_num_groups=8,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def start(original: Path) -> Path:
    return initialize(original, 3, output=original.parent / "start").folder


def unet(base: Path, adapter: Path | None = None) -> Any:
    """A UNet, with the adapter of a folder in diffusers' format."""
    model = diffusers.UNet2DConditionModel.from_pretrained(base)
    if adapter:
        prefix = "unet" if (adapter / RESULT).exists() else None  # what a model saves by itself has no component
        model.load_lora_adapter(str(adapter), prefix=prefix, weight_name=WEIGHTS, adapter_name="default")
    return model


def sample(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 24, generator=generator)
    found: Tensor = model(noise, torch.tensor([3, 500]), text).sample
    return found


@pytest.fixture(scope="module")
def trained(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, list[float]]:
    """What `save_lora_adapter` wrote after a few steps, what that model computes, and the losses."""
    folder = tmp_path_factory.mktemp("trained")
    model = unet(start, export(start, "diffusers", folder / "exported", component="unet").folder)
    parameters = [one for name, one in model.named_parameters() if "lora_" in name]
    for one in parameters:
        one.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    told = []
    for _ in range(4):
        loss = (sample(model) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        told.append(float(loss.detach()))
    (folder / "saved").mkdir()
    model.save_lora_adapter(str(folder / "saved"))
    with torch.no_grad():
        return folder / "saved", sample(model.eval()), told


@torch.no_grad()
def test_the_start_is_the_original_and_trains(
    start: Path, original: Path, trained: tuple[Path, Tensor, list[float]], tmp_path: Path, line: Any
) -> None:
    line.about("diffusers", "`load_lora_adapter` of a start, train, `save_lora_adapter`", HERE, *PACKAGES)
    exported = export(start, "diffusers", tmp_path / "exported", component="unet").folder
    expected = sample(unet(original).eval())
    again = sample(unet(start, trained[0]).eval())
    line.numbers |= {"step 0": apart(sample(unet(start, exported).eval()), expected)}
    line.numbers |= {"first loss": trained[2][0], "last loss": trained[2][-1], "reloaded": apart(again, trained[1])}
    line.numbers |= {"changed": apart(expected, trained[1])}
    assert max(line.numbers["step 0"], line.numbers["reloaded"]) < 1e-5 < 1e-2 < line.numbers["changed"]
    assert trained[2][-1] < trained[2][0]


@torch.no_grad()
def test_the_trained_adapter_comes_back(
    start: Path, original: Path, trained: tuple[Path, Tensor, list[float]], tmp_path: Path, line: Any
) -> None:
    line.about("diffusers", "`convert` of what `save_lora_adapter` wrote", HERE, *PACKAGES)
    convert(trained[0], start, tmp_path / "plain")
    plain = export(tmp_path / "plain", "diffusers", tmp_path / "exported", component="unet").folder
    line.numbers["convert"] = apart(sample(unet(original, plain).eval()), trained[1])
    assert line.numbers["convert"] < 1e-5


def test_diffusers_wants_the_name_of_the_file(start: Path, tmp_path: Path, line: Any) -> None:
    """Without `weight_name` it looks for a .bin file, unless it is told `use_safetensors=True`."""
    line.about("diffusers", "`load_lora_adapter` without `weight_name`: refused by diffusers", HERE, *PACKAGES)
    exported = export(start, "diffusers", tmp_path / "exported", component="unet").folder
    model = unet(start)
    with pytest.raises(OSError, match="no file named"):
        model.load_lora_adapter(str(exported))
