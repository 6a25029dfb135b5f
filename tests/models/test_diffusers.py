"""Denoisers of diffusers: self and cross attention of a UNet, joint attention of a transformer, by component."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from kit.cards import run_card
from torch import Tensor, nn

from ailora_tools import analyze, initialize, inspect_checkpoint, verify
from ailora_tools.errors import CheckpointError


def unet() -> tuple[nn.Module, dict[str, Tensor]]:
    """Text of width 24 beside features of width 64: to_v of the cross attention is not square."""
    model = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    text = torch.randn(1, 5, 24)
    return model, {"sample": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([3]), "encoder_hidden_states": text}


def transformer() -> tuple[nn.Module, dict[str, Tensor]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip
    text = {"encoder_hidden_states": torch.randn(1, 5, 32), "pooled_projections": torch.randn(1, 16)}
    return model, {"hidden_states": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([3]), **text}


@torch.no_grad()
def run(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model.eval()(**inputs).sample


@pytest.mark.parametrize("make", [unet, transformer])
def test_base_and_adapter_compute_what_the_original_does(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    name = make.__name__
    original = run(model, inputs)
    model.save_pretrained(tmp_path / "pipe" / name)
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"lie in subfolders: {name}"):
        inspect_checkpoint(tmp_path / "pipe")
    result = initialize(tmp_path / "pipe", 3, subfolder=name, output=tmp_path / "out")
    targets = {target.module for target in result.operation.plan.targets}
    assert targets == {path for path, _ in model.named_modules() if path.endswith((".to_q", ".to_v"))}
    base = type(model).from_pretrained(tmp_path / "out")
    assert (run(base, inputs) - original).norm() > 1e-4 * original.norm()
    place = run_card(tmp_path / "out")
    assert type(place["base"]) is type(model)
    assert (run(place["model"], inputs) - original).norm() <= 1e-5 * original.norm()
    assert verify(tmp_path / "out").holds


def test_a_card_takes_half_precision_and_names_the_variant_of_the_files(tmp_path: Path) -> None:
    """diffusers loads float32, and files without a variant, unless it is told."""
    model, _ = transformer()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "transformer", variant="bf16")
    initialize(tmp_path / "transformer", 3, output=tmp_path / "out")
    assert run_card(tmp_path / "out")["base"].dtype == torch.bfloat16


def test_the_other_stream_of_joint_attention_is_left_alone_and_said_so(tmp_path: Path) -> None:
    model, _ = transformer()
    model.save_pretrained(tmp_path / "transformer")
    notices = inspect_checkpoint(tmp_path / "transformer").plan.notices
    assert any("left alone: transformer_blocks.0.attn.add_q_proj.weight" in text for text in notices)


def test_self_and_cross_attention_are_told_apart(tmp_path: Path) -> None:
    model, _ = unet()
    model.save_pretrained(tmp_path / "unet")
    document = analyze(tmp_path / "unet", output=tmp_path / "out", rank=4).document
    shapes = {(row["stack"].rsplit(".", 1)[-1], row["role"]): tuple(row["shape"]) for row in document["matrices"]}
    assert shapes == {
        ("attn1", "q"): (64, 64),
        ("attn1", "v"): (64, 64),
        ("attn2", "q"): (64, 64),
        ("attn2", "v"): (64, 24),
    }
