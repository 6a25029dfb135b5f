"""sentence-transformers' own trainer on a start of all-MiniLM-L6-v2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.real_models import minilm
from kit.trainers import SCRIPTS, answer, apart, assert_back, environment

from ailora_tools import convert, initialize, merge

pytestmark = pytest.mark.trainers
SENTENCES = environment("sentence_transformers")


def test_embeddings_start_train_and_come_back(tmp_path: Path, line: Any) -> None:
    line.about("sentence-transformers", "train, save, load, convert, merge", SENTENCES, "sentence-transformers", "peft")
    original = minilm(tmp_path / "minilm")
    start = initialize(original, 8, output=tmp_path / "start").folder
    SENTENCES.run("python", SCRIPTS / "sentence.py", "train", start, tmp_path / "trained", here=tmp_path)
    losses = answer(tmp_path)
    convert(tmp_path / "trained", start, tmp_path / "plain")
    merge(start, tmp_path / "trained", tmp_path / "merged")
    models = {
        "original": original, "start": f"{start}+{start / 'ailora_init'}", "residual base": start,
        "trained": tmp_path / "trained", "convert": f"{original}+{tmp_path / 'plain'}", "merge": tmp_path / "merged",
    }  # fmt: skip
    SENTENCES.run("python", SCRIPTS / "sentence.py", "encode", *map(str, models.values()), here=tmp_path)
    found = dict(zip(models, map(torch.tensor, answer(tmp_path)), strict=True))
    line.numbers |= {"first loss": losses[0], "last loss": losses[-1]}
    line.numbers |= {"step 0": apart(found["start"], found["original"])}
    line.numbers |= {way: apart(found[way], found["trained"]) for way in ("convert", "merge")}
    line.numbers |= {"changed": apart(found["original"], found["trained"])}
    assert line.numbers["step 0"] < 1e-5 < 1e-2 < apart(found["residual base"], found["original"])
    assert losses[-1] < losses[0]
    assert_back(line.numbers)
