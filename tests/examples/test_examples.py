"""The examples that no other test runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kit.real_models import ROOT, first_layers, minilm, smollm2
from transformers import LlamaConfig, LlamaForCausalLM

from ailora_tools import analyze


def run(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_tour_names_files_that_are_there() -> None:
    for readme in (ROOT / "examples" / "README.md", ROOT / "examples" / "trainers" / "README.md"):
        for link in re.findall(r"\]\(([^)]+)\)", readme.read_text()):
            assert (readme.parent / link).exists(), link


def test_fidelity_is_measured(tmp_path: Path) -> None:
    printed = run("examples/fidelity.py", minilm(tmp_path / "minilm"))
    row = next(line for line in printed.splitlines() if "minilm" in line.lower())
    assert "|" in row and re.search(r"\d", row)


@pytest.mark.slow
def test_start_and_offset_cancel_to_the_bit_by_attach_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=64,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    rows = [line.split("|")[1:-1] for line in run("examples/cancel.py", tmp_path / "llama").splitlines() if "|" in line]
    values = {row[0].strip(): [float(cell) for cell in row[1:]] for row in rows[2:]}
    assert len(values) == 9 and all(attached == 0 for attached, _, _ in values.values())
    assert values["float32 under autocast"][1] > 1e-3
    guide = (ROOT / "examples/guide/training.md").read_text()
    assert all(f"| {name} | 0 | " in guide for name in values)


@pytest.mark.faults
@pytest.mark.parametrize(("roles", "most"), [("q,v", 1.5), ("all-linear", 1.0)])
def test_what_the_grid_gives_back_is_measured(roles: str, most: float, tmp_path: Path) -> None:
    model = first_layers(smollm2(tmp_path / "smollm2"), tmp_path / "model", 2)
    words = ("--tokens", "512", "--rank", "8", "--cache", "examples/guide/words.md")  # few
    shown = run("examples/grid.py", model, "--roles", roles, *words)
    rows = [line.split("|")[1:-1] for line in shown.splitlines() if "|" in line]
    assert [row[0].strip().split()[0].strip(",") for row in rows[2:]] == ["QLoRA", "LoftQ", "init"]
    assert all(float(row[1]) > 0 for row in rows[2:]) and 0.3 < float(rows[-1][-1]) < most  # cut layers


def test_a_picture_of_a_report(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium on this machine")
    analyze(minilm(tmp_path / "minilm"), layers="0", output=tmp_path / "report")
    run("examples/screenshot.py", tmp_path / "report" / "report.html", tmp_path / "page.png", "--phone")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
