"""Planted controls on real weights: for each the truth is known, and the findings must say it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.real_models import first_layers, rxnfp, smollm2
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools import analyze
from ailora_tools.report.changes import kind
from ailora_tools.report.rows import read_rows

TARGET = re.compile(r"\.(query|value|q_proj|v_proj)\.weight$")
Edit = Callable[[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rxnfp(tmp_path_factory.mktemp("rxnfp"))


def layer_of(name: str) -> int:
    hit = re.search(r"\.(\d+)\.", name)
    assert hit
    return int(hit[1])


def noise(name: str, W: Tensor, relative: float) -> Tensor:
    draw = torch.randn(W.shape, generator=torch.Generator().manual_seed(sum(name.encode())))
    return W + (relative * W.float().norm() / draw.norm() * draw).to(W.dtype)


def low_rank(name: str, W: Tensor, rank: int, relative: float) -> Tensor:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    D = torch.randn(W.shape[0], rank, generator=generator) @ torch.randn(rank, W.shape[1], generator=generator)
    return (W.float() + relative * W.float().norm() / D.norm() * D).to(W.dtype)


def cast(name: str, W: Tensor) -> Tensor:
    return W.bfloat16()


def cast_and_widened(name: str, W: Tensor) -> Tensor:
    """Numbers of bfloat16 stored in float32."""
    return W.bfloat16().float()


def planted(base: Path, out: Path, edit: Edit) -> Path:
    """A copy of `base` with `edit` applied to every W^Q and W^V."""
    shutil.copytree(base, out)
    for path in out.glob("*.safetensors"):
        tensors = {name: edit(name, W) if TARGET.search(name) else W for name, W in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
    return out


def compared(base: Path, tuned: Path, tmp_path: Path) -> tuple[set[str], str, dict[str, Any]]:
    """The kinds of change, all sentences, and the document."""
    document = analyze(base, against=[tuned], output=tmp_path / "report").document
    kinds = {kind(row, 0) for row in read_rows(document)}
    return kinds, " ".join(finding["text"] for finding in document["findings"]), document


def change(document: dict[str, Any], key: str) -> list[float]:
    return [row["changes"][0]["metrics"][key] for row in document["matrices"]]


def test_an_identical_copy(models: Path, tmp_path: Path) -> None:
    kinds, text, document = compared(
        models / "base", planted(models / "base", tmp_path / "t", lambda _, W: W), tmp_path
    )
    assert kinds == {"identical"} and "nothing changed; 0 of" in text
    assert set(change(document, "delta_norm")) == {0.0} and set(change(document, "delta_above")) == {0.0}
    assert "AILoRA's assumption" not in text and "changed more" not in text


@pytest.mark.parametrize("relative", [0.01, 0.1])
def test_isotropic_noise(models: Path, tmp_path: Path, relative: float) -> None:
    edited = planted(models / "base", tmp_path / "t", lambda name, W: noise(name, W, relative))
    kinds, text, document = compared(models / "base", edited, tmp_path)
    assert kinds == {"noise"} and "within noise" in text
    assert change(document, "relative_change") == pytest.approx([relative] * 24, rel=1e-3)
    places = [row["changes"][0]["placement"] for row in document["matrices"]]
    assert max(abs(share - 0.1) for place in places for share in place["deciles"]["output"]) < 0.02


def test_rank_four(models: Path, tmp_path: Path) -> None:
    edited = planted(models / "base", tmp_path / "t", lambda name, W: low_rank(name, W, 4, 0.01))
    kinds, text, document = compared(models / "base", edited, tmp_path)
    assert kinds == {"low rank"} and set(change(document, "delta_above")) == {4.0}
    assert "4 singular values above the noise edge hold" in text


def test_a_cast_to_bfloat16(models: Path, tmp_path: Path) -> None:
    for edit in (cast, cast_and_widened):
        edited = planted(models / "base", tmp_path / edit.__name__, edit)
        kinds, text, _ = compared(models / "base", edited, tmp_path / f"out-{edit.__name__}")
        assert kinds == {"rounding"} and "no change beyond rounding" in text


def test_weights_times_a_constant(models: Path, tmp_path: Path) -> None:
    kinds, text, document = compared(
        models / "base", planted(models / "base", tmp_path / "t", lambda _, W: 1.05 * W), tmp_path
    )
    assert kinds == {"rescaled"} and "the constant is 1.05" in text
    assert change(document, "relative_change") == pytest.approx([0.05] * 24, rel=1e-5)


def test_a_dropped_prefix(models: Path, tmp_path: Path) -> None:
    bare = rxnfp(tmp_path / "bare", "--keep-names")
    document = analyze(models / "base", against=[bare / "ft"], output=tmp_path / "a").document
    assert any("24 tensors are named differently" in text for text in document["notices"])
    whole = analyze(models / "base", against=[models / "ft"], output=tmp_path / "b").document
    assert document["matrices"] == whole["matrices"]


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_one_nan(models: Path, tmp_path: Path, side: str) -> None:
    def edit(name: str, W: Tensor) -> Tensor:
        if "layer.3." in name and "query" in name:
            W = W.clone()
            W[5, 7] = float("nan")
        return W

    edited = planted(models / "base", tmp_path / "t", edit)
    pair = (edited, models / "ft") if side == "base" else (models / "base", edited)
    _, text, document = compared(*pair, tmp_path)
    assert [row["label"] for row in document["skipped"]] == ["q 3"] and len(document["matrices"]) == 23
    assert "1 of 24 matrices could not be analysed" in text and "the first at [5, 7]" in text
    assert "identical" not in text or side == "tuned"


@pytest.mark.parametrize(
    "layers,words",
    [
        ({0, 1, 2, 3, 8, 9, 10, 11}, "the early and the late layers changed more than the middle"),
        ({4, 5, 6, 7}, "the middle layers changed most"),
        ({9, 10, 11}, "it changed most in the last third"),
    ],
)
def test_profiles_over_depth(models: Path, tmp_path: Path, layers: set[int], words: str) -> None:
    def edit(name: str, W: Tensor) -> Tensor:
        return low_rank(name, W, 4, 0.05) if layer_of(name) in layers else W

    kinds, text, _ = compared(models / "base", planted(models / "base", tmp_path / "t", edit), tmp_path)
    assert kinds == {"low rank", "identical"} and words in text and "did not change at all" in text


def test_rank_eight_stored_in_bfloat16(tmp_path: Path) -> None:
    base = first_layers(smollm2(tmp_path / "whole"), tmp_path / "smollm2", 8, torch.bfloat16)
    edited = planted(base, tmp_path / "t", lambda name, W: low_rank(name, W, 8, 0.015))
    kinds, text, document = compared(base, edited, tmp_path)
    counts = change(document, "delta_above")
    assert kinds == {"low rank"} and counts.count(8.0) == 16, counts
    assert "8 singular values above the noise edge" in text
    assert "noise of these shapes alone would have 0.607 against 0.846" in text  # grouped queries: V is 1 : 3


def test_a_change_of_q_alone_confirms_the_premise(models: Path, tmp_path: Path) -> None:
    def edit(name: str, W: Tensor) -> Tensor:
        return low_rank(name, W, 4, 0.05 if "query" in name else 0.01)

    edited = planted(models / "base", tmp_path / "t", edit)
    _, text, _ = compared(models / "base", edited, tmp_path)
    assert (
        "W^Q changed more than W^V (AILoRA's assumption holds here)" in text and "Q higher in 12 of 12 layers" in text
    )


def test_the_real_pair_against_a_plain_computation(models: Path, tmp_path: Path) -> None:
    """V changed slightly more than Q: 0.228 against 0.199, means over the layers."""
    _, text, document = compared(models / "base", models / "ft", tmp_path)
    before, after = (load_file(models / name / "model.safetensors") for name in ("base", "ft"))
    means = {}
    for role, word in (("q", "query"), ("v", "value")):
        found = []
        for row in (row for row in document["matrices"] if row["role"] == role):
            name = f"bert.encoder.layer.{row['layer']}.attention.self.{word}.weight"
            W, D = before[name].double(), after[name].double() - before[name].double()
            U, S, Vh = torch.linalg.svd(W)
            moved = row["changes"][0]
            assert row["tensor"] == name
            assert moved["metrics"]["relative_change"] == pytest.approx(float(D.norm() / W.norm()), rel=1e-7)
            values = torch.linalg.svdvals(D)
            edge = 1.05 * float(D.square().mean().sqrt()) * 32
            assert moved["metrics"]["delta_above"] == int((values > edge).sum())
            assert moved["delta_singular_values"][0] == pytest.approx(float(values[0]), rel=1e-7)
            inner = (U.T @ D @ Vh.T)[:8, :8].square().sum() / D.square().sum()
            assert moved["placement"]["top_block"] == pytest.approx(float(inner), rel=1e-3)
            tenth = (U[:, :26].T @ D).square().sum() / D.square().sum()
            assert moved["placement"]["deciles"]["output"][0] == pytest.approx(float(tenth), rel=1e-3)
            U1, S1, _ = torch.linalg.svd(after[name].double())
            overlap = float((U[:, :8].T @ U1[:, :8]).square().sum() / 8)
            assert moved["placement"]["top_output_overlap"] == pytest.approx(overlap, abs=1e-4)
            intruders = int(((U.T @ U1[:, :10]).abs().amax(0) < 0.5).sum())
            assert moved["placement"]["intruders"] == intruders
            assert row["spectrum"]["singular_values"] == pytest.approx(S.tolist(), rel=1e-6)
            assert moved["singular_values_after"] == pytest.approx(S1.tolist(), rel=1e-6)
            found.append(moved["metrics"]["relative_change"])
        means[role] = sum(found) / len(found)
    assert (round(means["q"], 3), round(means["v"], 3)) == (0.199, 0.228)
    assert "W^V changed more than W^Q" in text and "0.199 for W^Q against 0.228 for W^V" in text


def test_every_sentence_has_a_number(models: Path, tmp_path: Path) -> None:
    _, _, document = compared(models / "base", models / "ft", tmp_path)
    for finding in document["findings"]:
        assert re.search(r"\d", finding["text"]) and finding["numbers"], json.dumps(finding)
