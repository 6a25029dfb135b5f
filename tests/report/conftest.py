"""Reports of real and small models, and a Chromium that opens them and notes everything that should not happen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import write_checkpoint
from kit.families import build
from kit.real_models import minilm, rxnfp, smollm2

from ailora_tools import analyze

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '</script><img src=x onerror="document.title=1">'


def _unet(root: Path) -> Path:
    """Attention to the picture and to a text, in blocks of different widths."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, cross_attention_dim=24, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(root)  # fmt: skip
    return root


def _whisper(root: Path) -> Path:
    build("whisper").save_pretrained(root)
    return root


def _deep(root: Path) -> Path:
    """80 layers with grouped queries."""
    generator = torch.Generator().manual_seed(0)
    shapes = (("q_proj", 64), ("v_proj", 16))
    return write_checkpoint(root, {
        f"model.layers.{layer}.self_attn.{name}.weight": torch.randn(rows, 64, generator=generator)
        for layer in range(80) for name, rows in shapes
    })  # fmt: skip


def _damaged(root: Path) -> Path:
    """One matrix that holds a NaN."""
    tensors = {
        f"model.layers.{layer}.self_attn.{role}_proj.weight": torch.randn(16, 16) for layer in range(3) for role in "qv"
    }
    tensors["model.layers.1.self_attn.v_proj.weight"][2, 3] = float("nan")
    return write_checkpoint(root, tensors)


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> report.html, with analysis.json beside it."""
    root = tmp_path_factory.mktemp("reports")
    pair = rxnfp(root / "rxnfp")
    hostile = {f"{HOSTILE}.{layer}.{role}_proj.weight": torch.randn(8, 8) for layer in range(4) for role in "qv"}
    sources: dict[str, tuple[Path, dict[str, Any]]] = {
        "minilm": (minilm(root / "minilm"), {"suggest_targets": 3}),
        "smollm2": (smollm2(root / "smollm2"), {"heads": True}),
        "rxnfp": (
            pair / "base",
            {"against": [pair / "ft", pair / "ft_10k"], "heads": True, "suggest_ranks": 8, "suggest_targets": 4},
        ),
        "identical": (pair / "base", {"against": [pair / "base"]}),
        "hostile": (write_checkpoint(root / "<b>", hostile, model_type="odd"), {"rank": 2}),
        "whisper": (_whisper(root / "whisper"), {"heads": True, "rank": 4, "suggest_targets": 0.3}),
        "unet": (_unet(root / "unet"), {"rank": 4}),
        "deep": (_deep(root / "deep"), {"suggest_targets": 0.4}),
        "damaged": (_damaged(root / "damaged"), {"rank": 2, "layers": "0-2"}),
        "one layer": (root / "minilm", {"layers": "2"}),
    }
    return {name: analyze(model, output=root / "out" / name, **more).report for name, (model, more) in sources.items()}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()
