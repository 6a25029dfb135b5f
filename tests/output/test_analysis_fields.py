"""The types that `report` reads analysis.json with say what the published schema says."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.hostile import DEEP, VALUES, Document, changed

from ailora_tools import AiloraError, analyze, initialize, render_report
from ailora_tools.checkpoint.gate import decode
from ailora_tools.output.analysis import read_analysis, schema
from ailora_tools.output.analysis_fields import Analysis

# What JSON cannot hold, or no float does: of these a schema says nothing. Whole numbers are written without a point.
PLAIN = [
    value
    for value in VALUES
    if value not in (DEEP, "\ud800", 10**400)
    and not (isinstance(value, float) and (not math.isfinite(value) or value.is_integer()))
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("analysis")
    model = write_checkpoint(root / "model", llama_tensors(hidden=16, kv=8), num_attention_heads=2, head_dim=8)
    start = initialize(model, 2, output=root / "start").adapter
    asked = {"suggest_ranks": 2, "suggest_targets": 2, "heads": True}
    found = analyze(model, rank=2, output=root / "report", against=[start], **asked).document
    return dict(json.loads(json.dumps(found)))


def accepted(text: str) -> bool:
    try:
        decode(text.encode(), "analysis.json", Analysis, "")
    except AiloraError:
        return False
    return True


def placement(document: dict[str, Any], **fields: int) -> dict[str, Any]:
    """That of a change in the first matrix, with those fields."""
    found: dict[str, Any] = document["matrices"][0]["changes"][0]["placement"]
    return found.update(fields) or found


def test_schema_and_types_agree_on_every_change(good: dict[str, Any]) -> None:
    validator = Draft202012Validator(schema())
    places = Document(good, lambda text: None, {}).places

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(places), st.sampled_from(PLAIN))
    def agree(place: tuple[Any, ...], value: Any) -> None:
        text = changed(good, place, value)
        assert accepted(text) == validator.is_valid(json.loads(text)), (place, value)

    assert accepted(json.dumps(good)) and validator.is_valid(good)
    agree()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["settings"].pop("rank"), r"\$\.settings\.rank: expected an integer"),
        (lambda d: d["matrices"][1]["cuts"]["top_energy"].pop(), r"\$\.matrices\[1\]: the lists of cuts"),
        (lambda d: d["matrices"][0]["cuts"]["ranks"].reverse(), "expected ascending ones"),
        (lambda d: d["matrices"][0]["spectrum"].update(singular_values=[1.0]), "there are 1 singular values"),
        (lambda d: d["matrices"][0]["metrics"].update(noise_edge=None), "noise_edge is null"),
        (lambda d: d["matrices"][0]["elements"].pop("quantile_levels"), "quantile_levels are"),
        (lambda d: d["matrices"][0]["changes"].pop(), "0 changes, and against has 1"),
        (lambda d: placement(d, intruders=1).pop("intruders_of"), "intruders is 1 and intruders_of is None"),
        (lambda d: placement(d, intruders=1, intruders_of=0), "intruders is 1 and intruders_of is 0"),
        (lambda d: d["ranks"]["rank_pattern"].clear(), "rank_pattern does not name"),
        (
            lambda d: d["targets"]["target_modules"].pop(),
            r"\$\.targets: modules and target_modules name different ones",
        ),
        (lambda d: d["targets"]["modules"].clear(), r"\$\.targets: modules and target_modules"),
        (lambda d: [row.update(module="x") for row in d["matrices"]], r"\$\.targets: .* have no matrices"),
        (lambda d: d["targets"].update(basis="condition"), r"\$\.targets: a module has no condition"),
        (lambda d: (d["against"].clear(), [row["changes"].clear() for row in d["matrices"]]), "and against is empty"),
        (lambda d: d["matrices"][0].update(layer="x"), r"\$\.matrices\[0\]\.layer: Expected int, got str, found 'x'"),
        (lambda d: d["matrices"][0]["spectrum"].update(singular_values=[1e308] * 16), "cannot be drawn"),
    ],
    ids=[
        "rank",
        "cuts",
        "order",
        "spectrum",
        "edge",
        "levels",
        "changes",
        "intruders of nothing",
        "intruders of fewer",
        "pattern",
        "lists",
        "none chosen",
        "strangers",
        "basis",
        "against",
        "type",
        "overflow",
    ],
)
def test_what_does_not_belong_together_is_named(good: dict[str, Any], change: Any, words: str, tmp_path: Path) -> None:
    document = copy.deepcopy(good)
    change(document)
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps(document))
    with pytest.raises(AiloraError, match=words) as caught:
        render_report(path)
    assert str(path) in str(caught.value) and caught.value.hint


def test_the_document_is_as_it_was_written(good: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps(good))
    assert json.dumps(read_analysis(path)) == json.dumps(good)
