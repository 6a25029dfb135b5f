"""Reports of real and small models, and a Chromium that opens them and notes everything that should not happen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import write_checkpoint
from kit.families import build
from kit.real_models import first_layers, minilm, rxnfp, smollm2

from ailora_tools import analyze

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
Source = Callable[[], tuple[Path, dict[str, Any]]]  # makes a model; what to analyse of it
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


def _hostile(root: Path) -> Path:
    drawn = {f"{HOSTILE}.{layer}.{role}_proj.weight": torch.randn(8, 8) for layer in range(4) for role in "qv"}
    return write_checkpoint(root, drawn, model_type="odd")


def _grouped(root: Path) -> Path:
    """Three heads for keys and values, nine for queries."""
    return first_layers(smollm2(root / "whole"), root / "smollm2", 10, torch.bfloat16)


class Reports(dict[str, Path]):
    """Name -> report.html, with analysis.json beside it; made when it is first asked for."""

    def __init__(self, folder: Path, sources: dict[str, Source]) -> None:
        super().__init__()
        self._folder, self._sources = folder, sources

    def __missing__(self, name: str) -> Path:
        model, more = self._sources[name]()
        self[name] = analyze(model, output=self._folder / name, **more).report
        return self[name]


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    root = tmp_path_factory.mktemp("reports")
    small, pair = cache(lambda: minilm(root / "minilm")), cache(lambda: rxnfp(root / "rxnfp"))
    tuned = {"heads": True, "suggest_ranks": 8, "suggest_targets": 4}
    sources: dict[str, Source] = {
        "minilm": lambda: (small(), {"suggest_targets": 3}),
        "one layer": lambda: (small(), {"layers": "2"}),
        "smollm2": lambda: (_grouped(root / "grouped"), {"heads": True}),
        "rxnfp": lambda: (pair() / "base", {"against": [pair() / "ft", pair() / "ft_10k"], **tuned}),
        "identical": lambda: (pair() / "base", {"against": [pair() / "base"]}),
        "hostile": lambda: (_hostile(root / "<b>"), {"rank": 2}),
        "whisper": lambda: (_whisper(root / "whisper"), {"heads": True, "rank": 4, "suggest_targets": 0.3}),
        "unet": lambda: (_unet(root / "unet"), {"rank": 4}),
        "deep": lambda: (_deep(root / "deep"), {"suggest_targets": 0.4}),
        "damaged": lambda: (_damaged(root / "damaged"), {"rank": 2, "layers": "0-2"}),
    }
    return Reports(root / "out", sources)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()
