"""`analyze --suggest-targets`: the modules that PEFT's KappaTune would choose, or those that changed most."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.families import build
from peft import LoraConfig, get_peft_model
from peft.helpers import KappaTuneSelector

from ailora_tools import analyze
from ailora_tools.cli.group import main
from ailora_tools.errors import OptionError

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen") / "model"
    build("llama").save_pretrained(folder)
    return folder


def test_condition_numbers_choose_what_peft_chooses(model: Path, tmp_path: Path) -> None:
    loaded = build("llama")
    selector = KappaTuneSelector(loaded, show_progress=False)
    expected = [name for name in selector.get_best_targets() if name != "lm_head"]
    found = analyze(model, roles=ROLES, rank=2, suggest_targets=0.5, output=tmp_path / "report").document["targets"]
    assert found["of"] == len(expected) and found["basis"] == "condition"
    assert [row["module"] for row in found["modules"]] == expected[: len(expected) // 2]
    kappas = selector._condition_numbers
    assert kappas is not None
    for row in found["modules"]:
        assert row["condition"] == pytest.approx(kappas[row["module"]], rel=1e-3)
    adapted = get_peft_model(loaded, LoraConfig(target_modules=found["target_modules"]))
    hit = {name.removeprefix("base_model.model.") for name, part in adapted.named_modules() if hasattr(part, "lora_A")}
    assert hit == set(found["target_modules"])


def test_a_fine_tune_chooses_what_it_changed_most(tmp_path: Path) -> None:
    tensors = llama_tensors(dtype=torch.float32)
    moved = {"model.layers.1.self_attn.v_proj": 1.5, "model.layers.0.self_attn.q_proj": 1.2}
    after = {**tensors, **{f"{name}.weight": size * tensors[f"{name}.weight"] for name, size in moved.items()}}
    base, tuned = (write_checkpoint(tmp_path / name, held) for name, held in (("base", tensors), ("tuned", after)))
    found = analyze(base, against=[tuned], rank=2, suggest_targets="2", output=tmp_path / "report").document["targets"]
    assert [row["module"] for row in found["modules"]] == list(moved)
    assert [row["change"] for row in found["modules"]] == pytest.approx([0.5, 0.2])
    assert found["target_modules"] == sorted(moved) and found["basis"] == "change"


def test_the_screen_has_the_list_for_peft_and_for_axolotl(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["analyze", str(model), "--suggest-targets", "1", "-o", str(tmp_path / "report")])
    assert "1 of the 4 modules analysed: those of the smallest condition numbers" in done.stdout
    assert "No measurement here says that they train better." in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("W^")][-1:]
    assert row.split()[-1].startswith("model.layers.")
    lines = done.stdout.splitlines()[-3:]
    assert lines[0].startswith("# 1 of 4 modules, those of the smallest condition numbers")
    assert lines[1].startswith('target_modules=["model.layers.') and lines[1].endswith('"]  # PEFT')
    assert lines[2].startswith('lora_target_modules: ["model.layers.') and lines[2].endswith('"]  # Axolotl')


@pytest.mark.parametrize("asked", ["0", "5", "0.0", "1.3", "many", "-1"])
def test_what_is_neither_a_share_nor_a_number_is_refused(model: Path, asked: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="neither a share of the 4 modules"):
        analyze(model, suggest_targets=asked, output=tmp_path / "report")
