"""The examples in docstrings do what they show, in a folder with a tiny model, a start of it, and an analysis."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.families import build
from kit.hub_server import HubServer
from peft import PeftModel

import ailora_tools
from ailora_tools import analyze, initialize

FUNCTIONS = [name for name in ailora_tools.__all__ if inspect.isfunction(getattr(ailora_tools, name))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model` and `encoder`, `start` by `initialize`, `analysis` by `analyze`."""
    root = tmp_path_factory.mktemp("examples")
    build("llama").save_pretrained(root / "model")
    build("bert with a head").save_pretrained(root / "encoder")
    initialize(root / "model", 2, output=root / "start")
    analyze(root / "model", rank=2, output=root / "analysis")
    return root


def scope(root: Path) -> dict[str, Any]:
    """What the examples take for granted: the names of this package, and the models of the folder, loaded."""
    base = type(build("llama")).from_pretrained(root / "start")
    return {
        **{name: getattr(ailora_tools, name) for name in ailora_tools.__all__},
        "torch": torch,
        "PeftModel": PeftModel,
        "original": type(build("llama")).from_pretrained(root / "model"),
        "encoder": type(build("bert with a head")).from_pretrained(root / "encoder"),
        "model": PeftModel.from_pretrained(base, root / "start" / "ailora_init", is_trainable=True),
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example_that_runs(
    name: str, prepared: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    text = inspect.getdoc(getattr(ailora_tools, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, scope(Path()), name, None, 0)
    assert example.examples, f"{name} has no example"
    report: list[str] = []
    outcome = doctest.DocTestRunner().run(example, out=report.append)
    assert outcome.failed == 0, "".join(report)
