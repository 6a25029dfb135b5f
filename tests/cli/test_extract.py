"""`ailora-tools extract`: its screen, its document, and bad input, which costs one message and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from kit.checkpoints import llama_tensors, tree, write_checkpoint

from ailora_tools.cli.group import main

Q0, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """base, tuned (another W^Q, whose difference has rank 2, and another norm), broken (NaN) and other (wider)."""
    tensors = llama_tensors(dtype=torch.float32)
    left, right = (torch.randn(48, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    tuned = {**tensors, Q0: tensors[Q0] + 0.01 * left @ right.T, NORM: 2 * tensors[NORM]}
    write_checkpoint(tmp_path / "base", tensors, shards=2)
    write_checkpoint(tmp_path / "tuned", tuned)
    write_checkpoint(tmp_path / "broken", {**tensors, Q0: torch.full((48, 48), torch.nan)})
    write_checkpoint(tmp_path / "other", llama_tensors(hidden=64, dtype=torch.float32))
    (tmp_path / "ranks.json").write_text("{}")
    return tmp_path


def run(place: Path, *arguments: str) -> Result:
    paths = [str(place / word) if (place / word).exists() or word == "out" else word for word in arguments]
    return CliRunner().invoke(main, ["extract", *paths])


def test_the_screen_tells_what_is_held_and_what_is_not(place: Path) -> None:
    done = run(place, "base", "tuned", "-o", "out", "--rank", "8")
    assert done.exit_code == 0, done.output
    facts = dict(line.split(None, 1) for line in done.stdout.splitlines() if line and not line.startswith(" "))
    assert facts["adapter"] == str(place / "out") and facts["modules"] == "1, rank 2, scaling 1"
    assert facts["unchanged"].startswith("9 modules")
    assert f"1 tensors: {NORM}" in done.stdout
    (row,) = (line.split() for line in done.stdout.splitlines() if line.startswith("q_proj"))
    assert row[:3] == ["q_proj", "1", "2"]


def test_a_dry_run_writes_nothing(place: Path) -> None:
    before = tree(place)
    done = run(place, "base", "tuned", "-o", "out", "--dry-run", "--json")
    document = json.loads(done.stdout)
    assert done.exit_code == 0 and document["dry_run"] and len(document["planned"]) == 10
    assert tree(place) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["base", "base"], "there is no LoRA to extract"),
        (["base", "broken"], "NaN or infinite"),
        (["base", "other"], "not a fine-tune of the analysed model"),
        (["base", "nowhere/at/all"], "no such file or folder"),
        (["base", "tuned", "--rank", "64"], "rank 64 is above 48"),
        (["base", "tuned", "--energy", "2"], "an energy above 0"),
        (["base", "tuned", "--ranks", "ranks.json"], "format and version"),
        (["base", "tuned", "--layers", "7"], "there is no layer 7"),
        (["base", "tuned", "--roles", "gate"], "gate"),
    ],
)
def test_bad_input_costs_one_message(place: Path, arguments: list[str], words: str) -> None:
    before = tree(place)
    done = run(place, *arguments, "-o", "out")
    assert done.exit_code == 1, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.stdout == "" and "error: " in done.stderr and words in done.stderr.replace("\n", " ")
    assert tree(place) == before


def test_what_is_there_is_replaced_only_on_demand(place: Path) -> None:
    assert run(place, "base", "tuned", "-o", "out").exit_code == 0
    before = tree(place)
    assert "already exists" in run(place, "base", "tuned", "-o", "out").stderr
    assert "is the source itself" in run(place, "base", "tuned", "-o", "tuned", "--overwrite").stderr
    assert tree(place) == before
    assert run(place, "base", "tuned", "-o", "out", "--overwrite").exit_code == 0
    assert tree(place) == before, "the same bytes twice"
