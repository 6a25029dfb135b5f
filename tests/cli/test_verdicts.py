"""Whether the numbers of a start are good: one word each, and a sentence for what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools import initialize
from ailora_tools.cli.group import main
from ailora_tools.cli.verdicts import VERDICTS
from ailora_tools.output.manifest import ModuleRecord

GOOD = {"gap": 0.1, "survival": 1.0, "reconstruction_error": 1e-7, "motion": 1.0, "dead": 0}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ModuleRecord]:
    root = tmp_path_factory.mktemp("verdicts")
    write_checkpoint(root / "model", llama_tensors())
    manifest = initialize(root / "model", 2, output=root / "out").manifest
    assert manifest is not None
    return [replace(record, **GOOD) for record in manifest.modules]


def judged(records: list[ModuleRecord], **changed: Any) -> dict[str, str]:
    """The words of the verdicts, with one field of W^Q in the first layer changed."""
    first, *others = records
    return {name: judge([replace(first, **changed), *others])[0] for name, judge in VERDICTS.items()}


def test_what_is_good_is_called_so(records: list[ModuleRecord]) -> None:
    assert set(judged(records).values()) == {"good"}
    assert not any(sentence for judge in VERDICTS.values() for sentence in judge(records)[1:])


@pytest.mark.parametrize(
    ("number", "changed", "word"),
    [
        ("gap at the cut", {"gap": 0.001}, "close"),
        ("survival in the base", {"survival": 0.4}, "low"),
        ("reconstruction error", {"reconstruction_error": 0.02}, "poor"),
        ("first step / lr", {"motion": 9.0}, "apart"),
        ("dead components", {"dead": 1}, "some"),
    ],
)
def test_each_number_is_judged_by_itself(
    number: str, changed: dict[str, Any], word: str, records: list[ModuleRecord]
) -> None:
    found = judged(records, **changed)
    assert found.pop(number) == word and set(found.values()) == {"good"}
    _, sentence = VERDICTS[number]([replace(records[0], **changed), *records[1:]])
    assert sentence.endswith(".") and any(character.isdigit() for character in sentence)


def test_what_is_not_known_is_no_fault(records: list[ModuleRecord]) -> None:
    assert judged(records, gap=None, survival=None)["gap at the cut"] == "good"


def test_the_screen_tells_them(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", llama_tensors())
    text = CliRunner().invoke(main, ["init", str(tmp_path / "model"), "-r", "2", "-o", str(tmp_path / "out")]).stdout
    rows = {name: next(line.split()[-1] for line in text.splitlines() if line.startswith(name)) for name in VERDICTS}
    assert rows["reconstruction error"] == rows["survival in the base"] == "good"
