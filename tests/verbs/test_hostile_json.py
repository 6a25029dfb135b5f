"""Any value anywhere in any file of JSON: every verb that reads it does its work or names one problem."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.hostile import NAMES, VALUES, Document, documents

from ailora_tools import AiloraError, inspect_checkpoint, render_report, verify
from ailora_tools.checkpoint import hub
from ailora_tools.output.ranks import read_ranks

pytestmark = pytest.mark.usefixtures("asked_apart")  # a number may make a class take all memory, but for its bounds
REPORT = "FAULTS_REPORT"  # the file that takes a line for every count


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    found = documents(tmp_path_factory.mktemp("files"))
    assert found.keys() == set(NAMES)
    return found


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file may name a model on the Hub; nothing here is asked of one."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def search(document: Document, examples: int, area: str = "") -> None:
    """Let hypothesis choose places, values and verbs; it shrinks what fails to the first such place."""
    tries, survived = 0, 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(document.places), st.sampled_from(VALUES), st.sampled_from(sorted(document.readers)))
    def refused_or_read(place: tuple[object, ...], value: object, verb: str) -> None:
        nonlocal tries, survived
        tries += 1
        document.attempt(place, value, verb)
        survived += 1

    try:
        refused_or_read()
    finally:
        if area and os.environ.get(REPORT):
            line = {"area": area, "tries": tries, "survived": survived, "failed": tries - survived, "note": ""}
            with open(os.environ[REPORT], "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_the_good_file_is_read(files: dict[str, Document], name: str) -> None:
    """At least one verb does its work with the file unchanged: else everything below would hold for a refusal."""
    document = files[name]
    document.put(json.dumps(document.good))
    done = []
    for read in document.readers.values():
        try:
            done.append(read())
        except AiloraError:
            continue
    assert done


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_changed_values(files: dict[str, Document], name: str) -> None:
    search(files[name], 20)


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_changed_values(files: dict[str, Document], name: str) -> None:
    search(files[name], 800, f"hostile JSON: {name}")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"text_config": {"num_hidden_layers": 10**12}},
        {"num_hidden_layers": 10**400},
        {"model_type": "phi3", "num_attention_heads": 10**12},
    ],
    ids=["layers", "layers of the text part", "layers of 400 digits", "heads"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_no_number_in_a_config_takes_memory(tmp_path: Path, changes: dict[str, object]) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors(), **changes)
    done = subprocess.run(
        [sys.executable, "-m", "ailora_tools", "inspect", str(model)], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )  # fmt: skip
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors())
    for name in ("ailora.json", "analysis.json", "ranks.json"):
        os.mkfifo(tmp_path / name)
    for read in (
        lambda: verify(tmp_path),
        lambda: render_report(tmp_path),
        lambda: read_ranks(tmp_path / "ranks.json"),
    ):
        with pytest.raises(AiloraError, match="expected a file, found a folder or a device"):
            read()
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(AiloraError, match=r"config\.json: a pipe or a device"):
        inspect_checkpoint(model)
