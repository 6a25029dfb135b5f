"""The screens of the verbs at 40, 80 and 120 columns: nothing is cut, and all layers are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.families import build
from rich.cells import cell_len

from ailora_tools.cli.group import main
from ailora_tools.display.console import out
from ailora_tools.display.text import BARS

WIDTHS = (40, 80, 120)
SCREENS = {
    "inspect": "inspect whisper",
    "init": "init whisper -r 2 --overwrite -o start",
    "init, four roles": "init whisper -r 2 --roles q,k,v,o --method pissa --overwrite -o pissa",
    "verify": "verify start",
    "analyze": "analyze deep -r 2 --overwrite -o report",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("screens")
    build("whisper").save_pretrained(root / "whisper")
    write_checkpoint(root / "deep", llama_tensors(layers=80))
    assert (
        CliRunner().invoke(main, ["init", str(root / "whisper"), "-r", "2", "-o", str(root / "start")]).exit_code == 0
    )
    return root


def shown(name: str, width: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(out, "_width", width)
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(main, SCREENS[name].split())
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCREENS)
def test_nothing_is_cut(name: str, width: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in shown(name, width, folder, monkeypatch):
        assert "…" not in line.replace(" …", ""), "only between the ends of a range"
        copied = "/" in line or line.startswith(("•", "from ", "base = ", "model = ", "check_start"))  # in one piece
        assert copied or cell_len(line) <= width, line


@pytest.mark.parametrize(("width", "bars"), [(40, 27), (80, 40), (120, 80)])
def test_all_layers_are_there(width: int, bars: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown("analyze", width, folder, monkeypatch)
    rows = [line.split()[-1] for line in lines if line and line[-1] in BARS]
    assert [len(row) for row in rows] == [bars] * 6
    shared = -(-80 // bars)
    assert (f"one for {shared} layers" in " ".join(" ".join(lines).split())) == (shared > 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_role_has_its_numbers(width: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown("init, four roles", width, folder, monkeypatch)
    tables = sum(line.startswith("starts from") for line in lines)
    assert tables == {40: 4, 80: 2, 120: 1}[width] and all(f"W^{role}" in "".join(lines) for role in "QKVO")


def unet(folder: Path) -> Path:
    """Names of a diffusers UNet: two stages with two blocks each, of two attentions."""
    blocks = [f"{stage}_blocks.{at}.attentions.{n}" for stage in ("down", "up") for at in (0, 1) for n in (0, 1)]
    ends = [f"attn{kind}.to_{role}.weight" for kind in (1, 2) for role in "qv"]
    names = [f"{block}.transformer_blocks.0.{end}" for block in blocks for end in ends]
    return write_checkpoint(folder, {name: torch.randn(8, 8) for name in names}, model_type="odd")


def test_the_blocks_of_a_unet_are_numbered_through(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(unet(tmp_path / "unet")), "--quiet"])
    rows = [line.split()[:4] for line in done.stdout.splitlines() if line.startswith("W^")]
    down, up = (f"{stage}_blocks.*.attentions.*.transformer_blocks.*.attn1.to_q.weight" for stage in ("down", "up"))
    assert rows[:2] == [["W^Q", "self", "0-3", down], ["W^Q", "self", "4-7", up]] and len(rows) == 8


def test_the_number_of_the_layer_is_the_one_behind_its_stack(tmp_path: Path) -> None:
    names = [f"towers.{layer}.blocks.{layer}.attn.{role}_proj.weight" for layer in (0, 1) for role in "qv"]
    model = write_checkpoint(tmp_path / "model", {name: torch.randn(8, 8) for name in names}, model_type="odd")
    text = CliRunner().invoke(main, ["inspect", str(model), "--quiet"]).stdout
    assert "towers.1.blocks.{layer}.attn.q_proj.weight" in text, text
