"""Layers that are copies of others are no further evidence: no p value, median or count is better for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, write_checkpoint
from torch import Tensor

from ailora_tools import analyze, render_report
from ailora_tools.cli import main

LAYERS = 6


def stacked(plain: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """A passthrough merge: the layers of `plain` in that order, with repetitions."""
    others = {name: value for name, value in plain.items() if ".layers." not in name}
    for new, old in enumerate(order):
        head = f"model.layers.{old}."
        others |= {
            f"model.layers.{new}.{name.removeprefix(head)}": value.clone()
            for name, value in plain.items()
            if name.startswith(head)
        }
    return others


def tuned(plain: dict[str, Tensor], seed: int = 5) -> dict[str, Tensor]:
    """W^Q moved more than W^V in every layer."""
    generator = torch.Generator().manual_seed(seed)
    moved = dict(plain)
    for name, value in plain.items():
        size = 0.02 if "q_proj" in name else 0.01
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            moved[name] = value + size * torch.randn(value.shape, generator=generator)
    return moved


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    plain = llama_tensors(layers=LAYERS, hidden=48, kv=24, dtype=torch.float32)
    order = [*range(LAYERS), 2, 3, 4, 5]
    write_checkpoint(root / "plain", plain)
    write_checkpoint(root / "plain-tuned", tuned(plain))
    write_checkpoint(root / "stacked", stacked(plain, order))
    write_checkpoint(root / "stacked-then-tuned", tuned(stacked(plain, order)))
    write_checkpoint(root / "tuned-then-stacked", stacked(tuned(plain), order))
    return root


def findings(document: dict[str, Any]) -> dict[str, Any]:
    """Numbers by id, without what tells of the copies themselves."""
    return {row["id"]: row["numbers"] for row in document["findings"] if not row["id"].startswith("copies")}


def text_of(document: dict[str, Any], which: str) -> str:
    return next(row["text"] for row in document["findings"] if row["id"] == which)


# What counts matrices as such, or goes over the depth of the model, is not evidence of independent layers.
OF_THE_WHOLE = ("premise", "motion", "depth", "kind:")


def of_layers(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in findings(document).items()
        if key.startswith("premise:") or not key.startswith(OF_THE_WHOLE)
    }


def test_the_numbers_are_those_of_the_model_without_copies(models: Path, tmp_path: Path) -> None:
    alone, doubled = (analyze(models / name, output=tmp_path / name, rank=4).document for name in ("plain", "stacked"))
    assert of_layers(doubled) == of_layers(alone)
    assert of_layers(alone)["difference:effective_rank_share"]["layers"] == LAYERS


def test_with_a_fine_tune_that_was_stacked_as_well(models: Path, tmp_path: Path) -> None:
    alone, doubled = (
        analyze(models / base, against=[models / other], output=tmp_path / base, rank=4).document
        for base, other in (("plain", "plain-tuned"), ("stacked", "tuned-then-stacked"))
    )
    assert of_layers(doubled) == of_layers(alone)
    assert of_layers(alone)["premise:relative_change"]["p"] == pytest.approx(2 / 2**LAYERS)
    assert "of the 8 copies all were changed alike" in text_of(doubled, "copies:changed")


def test_copies_that_were_tuned_apart_count_for_themselves(models: Path, tmp_path: Path) -> None:
    document = analyze(
        models / "stacked", against=[models / "stacked-then-tuned"], output=tmp_path / "out", rank=4
    ).document
    assert findings(document)["premise:relative_change"]["layers"] == LAYERS + 4
    assert findings(document)["difference:effective_rank_share"]["layers"] == LAYERS
    assert "of the 8 copies 0 were changed alike" in text_of(document, "copies:changed")


def test_a_layer_of_which_only_w_q_is_a_copy_is_a_layer(tmp_path: Path) -> None:
    tensors = llama_tensors(layers=4, dtype=torch.float32)
    tensors["model.layers.3.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].clone()
    document = analyze(write_checkpoint(tmp_path / "model", tensors), output=tmp_path / "out", rank=4).document
    assert findings(document)["difference:effective_rank_share"]["layers"] == 4
    assert [row.get("copy_of") for row in document["matrices"]].count("q 0") == 1


def test_document_report_and_terminal_say_so(models: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["analyze", str(models / "stacked"), "-o", str(tmp_path / "out"), "--rank", "4"], env={"COLUMNS": "300"}
    )
    assert done.exit_code == 0
    assert re.search(r"8 of 20 matrices \(q 6-9; v 6-9\) are copies of others: q 6 of q 2", done.output)
    document = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert {row["label"]: row["copy_of"] for row in document["matrices"] if row["copy_of"]} == {
        f"{role} {new}": f"{role} {new - 4}" for role in "qv" for new in range(6, 10)
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "are copies of others" in page and "8 matrices, counted once" in page
    render_report(tmp_path / "out" / "analysis.json", output=tmp_path / "again.html")
    assert "are copies of others" in (tmp_path / "again.html").read_text()


def test_without_copies_nothing_is_said(models: Path, tmp_path: Path) -> None:
    document = analyze(models / "plain", against=[models / "plain-tuned"], output=tmp_path / "out", rank=4).document
    assert not [row for row in document["findings"] if row["id"].startswith("copies")]
    assert not [row for row in document["matrices"] if row["copy_of"]]
