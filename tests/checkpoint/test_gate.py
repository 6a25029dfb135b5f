"""What the gate lets through, what it refuses, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.hub_server import HubServer, Repo, _Handler

from ailora_tools import initialize, inspect_checkpoint
from ailora_tools.checkpoint.files import LocalFiles
from ailora_tools.checkpoint.gate import Rank, View, decode, parse, read_json, stated_path, stays_inside
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.checkpoint.source import open_files
from ailora_tools.errors import CheckpointError


class Pair(View):
    first: Rank
    second: list[float] = []  # noqa: RUF012 - msgspec copies it


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e400", "1e400 is out of range"),
        ('"\\ud800"', "surrogates not allowed"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ("[" * 9999 + "]" * 9999, "maximum recursion depth"),
        ("1" * 5000, "Exceeds the limit"),
        ("{", "Expecting property name"),
    ],
    ids=lambda value: value[:9],
)
def test_what_is_no_json(text: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"^a file: not valid JSON .*{words}"):
        parse(text.encode(), "a file")


def test_a_published_config_may_hold_infinity(tmp_path: Path) -> None:
    """Mamba-2 and its hybrids state a limit of time steps from 0 to infinity, as Python writes it."""
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_json(LocalFiles(tmp_path), "config.json", constants=True)["time_step_limit"][1] == float("inf")
    with pytest.raises(CheckpointError, match="Infinity is not JSON"):
        read_json(LocalFiles(tmp_path), "config.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"first": 0}', r"\$\.first: Expected int >= 1, found 0"),
        ('{"first": true}', r"\$\.first: Expected int, got bool, found True"),
        ('{"first": 3000000000}', r"\$\.first: Expected int <= 2147483647, found 3000000000"),
        ('{"first": 1, "second": [1, "x"]}', r"\$\.second\[1\]: Expected float, got str, found 'x'"),
        ("{}", "Object missing required field first"),
        ("[]", "Expected object, got array"),
        ("{", "not valid JSON"),
    ],
)
def test_the_place_what_was_expected_and_what_was_found(text: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"^a file: .*{words}") as caught:
        decode(text.encode(), "a file", Pair, "What to do.")
    assert caught.value.hint == "What to do."


@pytest.mark.parametrize("name", ["a", "a/b.json", "a..b", ".hidden", "ü/ß"])
def test_names_inside(name: str) -> None:
    assert stays_inside(name)


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../../b", "a//b", "a/", ".", "a\\b", "C:a", "a\0"])
def test_names_outside(name: str) -> None:
    assert not stays_inside(name)


@pytest.mark.parametrize("value", ["~nobody-here/x", "a\0b", "x" * 5000])
def test_what_can_be_no_path(value: str) -> None:
    assert stated_path(value) is None


@pytest.mark.parametrize("metadata", [None, [], "text", 7])
def test_an_index_may_say_anything_beside_its_map(tmp_path: Path, metadata: Any) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors(), shards=2)
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": metadata}))
    initialize(model, 4, output=tmp_path / "out", base_dtype="float32")
    made = open_checkpoint(tmp_path / "out")
    total = sum(stored.nbytes for stored in made.tensors.values())
    assert json.loads((tmp_path / "out" / index.name).read_text())["metadata"] == {"total_size": total}


def test_an_odd_field_that_is_not_needed_refuses_no_model(tmp_path: Path) -> None:
    model = write_checkpoint(
        tmp_path / "model", llama_tensors(), num_attention_heads="many", num_hidden_layers=None, text_config=7,
        quantization_config=[], architectures="one",
    )  # fmt: skip
    assert len(inspect_checkpoint(model).plan.targets) == 4


def test_strange_names_of_a_listing_are_left_out_and_told(tmp_path: Path, hub: HubServer) -> None:
    files = tree(write_checkpoint(tmp_path / "model", llama_tensors()))
    strange = ["/etc/passwd", "a//b", "../up.json", "", "a\\b"]
    hub.repos["org/model"] = Repo({**files, **dict.fromkeys(strange, b"{}")})
    found = open_files("org/model")
    assert found.names() == sorted(files)
    assert "lists 5 names that are no file in a folder, left out: '/etc/passwd'" in found.notices[0]


@pytest.mark.parametrize("siblings", [7, [7], [{"size": 3}], [{"rfilename": "a", "size": "x"}, {"rfilename": 9}], "x"])
def test_a_listing_that_is_none(hub: HubServer, siblings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/model"] = Repo({"model.safetensors": b""})
    answer = {"id": "org/model", "sha": "0" * 40, "siblings": siblings, "tags": []}
    monkeypatch.setattr(_Handler, "_info", lambda *_: answer)
    with pytest.raises(CheckpointError):
        open_checkpoint("org/model")
