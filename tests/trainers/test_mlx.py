"""mlx-lm's own commands on a start that `export --to mlx` put into its format: `mlx_lm lora` and `mlx_lm fuse`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.trainers import HERE, apart, assert_back, load, logits, sums, tiny_decoder, way_back, write_lines
from safetensors.torch import load_file

from ailora_tools import export, initialize

pytestmark = pytest.mark.trainers
PACKAGES = ("mlx-lm", "mlx")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def start(original: Path) -> Path:
    return initialize(original, 4, output=original.parent / "start").folder


def mlx(folder: Path, *words: object) -> str:
    """What it prints, without colours."""
    printed = HERE.run("python", "-m", "mlx_lm", *map(str, words), here=folder, COLUMNS="100")
    return re.sub(r"\x1b\[[\d;]*m", "", printed)


def told(what: str, printed: str) -> float:
    """A loss, to the three digits that mlx-lm prints."""
    found = re.search(rf"{what} (\d+\.\d+)", printed)
    assert found, printed
    return float(found[1])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts to train on, and the same for validation and test."""
    folder = tmp_path_factory.mktemp("rows")
    for name in ("train", "valid", "test"):
        texts = [{"text": f"{asked} {answer}"} for asked, answer in sums(8)]
        write_lines(folder / f"{name}.jsonl", texts)
    return folder


@pytest.fixture(scope="module")
def exported(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The start's adapter in mlx-lm's format, with the settings that `mlx_lm lora` must be told."""
    return export(start, "mlx", tmp_path_factory.mktemp("mlx") / "start").folder


@pytest.fixture(scope="module")
def trained(start: Path, exported: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `mlx_lm lora --train` wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    printed = mlx(
        folder, "lora", "-c", exported / "lora_config.yaml", "--model", start, "--train", "--data", rows,
        "--adapter-path", folder / "out", "--iters", 4, "--batch-size", 8, "--learning-rate", 1e-2,
        "--steps-per-report", 1, "--val-batches", 1,
    )  # fmt: skip
    return folder / "out", printed


def by_hand(trained: Path, start: Path) -> torch.nn.Module:
    """The residual base with the trained factors added, as mlx-lm defines them: W + scale (lora_a lora_b)^T."""
    model = load(start)
    weights = load_file(trained / "adapters.safetensors")
    scale = json.loads((trained / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    for name, a in weights.items():
        if name.endswith(".lora_a"):
            module = model.get_submodule(name.removesuffix(".lora_a"))
            module.weight.data += scale * (a @ weights[name.replace("lora_a", "lora_b")]).T
    return model


def test_the_start_is_the_original_and_trains(
    start: Path, original: Path, exported: Path, rows: Path, trained: tuple[Path, str], tmp_path: Path, line: Any
) -> None:
    line.about("mlx-lm", "`export --to mlx`, `mlx_lm lora` with its settings, `mlx_lm fuse`", HERE, *PACKAGES)
    folder, printed = trained
    at = ("lora", "--test", "--data", rows, "--batch-size", 8, "--test-batches", 1, "--adapter-path")
    expected = told("Test loss", mlx(tmp_path, *at, "", "--model", original))
    found = told("Test loss", mlx(tmp_path, *at, exported, "--model", start))
    alone = told("Test loss", mlx(tmp_path, *at, "", "--model", start))
    line.numbers |= {"test loss": found, "test loss of the original": expected, "of the residual base": alone}
    line.numbers |= {"first validation loss": told(r"1\s+val", printed)}
    mlx(tmp_path, "fuse", "--model", start, "--adapter-path", folder, "--save-path", tmp_path / "fused")
    model = logits(by_hand(folder, start))
    line.numbers |= {
        "fused": apart(logits(load(tmp_path / "fused")), model),
        "changed": apart(logits(load(original)), model),
    }
    assert found == pytest.approx(expected, abs=2e-3) and abs(alone - expected) > 0.02
    assert line.numbers["first validation loss"] == pytest.approx(expected, abs=2e-3)
    assert line.numbers["fused"] < 1e-5 < 1e-2 < line.numbers["changed"]


def test_the_trained_adapter_comes_back(
    start: Path, original: Path, trained: tuple[Path, str], tmp_path: Path, line: Any
) -> None:
    line.about("mlx-lm", "`convert` and `merge` of what `mlx_lm lora` saved", HERE, *PACKAGES)
    line.numbers |= way_back(trained[0], start, original, tmp_path, of=by_hand(trained[0], start))
    assert_back(line.numbers)
