"""Processes and agents that die, stop or are told to end, at seeded points: the same bytes afterwards, and never half a
folder under the final name. `-m faults` takes many more points."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.gang import end, run, start, told
from kit.waiting import until

from ailora_tools import initialize

SIZES = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
LAYERS = 6
EVENTS = (180, 80)  # calls to the file system of the first process, and of another one, during an `init`
COPYING = 24  # of those of another one, with the shards that it copies
MANY = [pytest.param(seed, marks=pytest.mark.faults) for seed in range(1, 20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    return write_checkpoint(folder, llama_tensors(LAYERS, 96, 48), shards=2, **SIZES)


@pytest.fixture
def wanted(model: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one process writes to the place that the gang will write to."""
    initialize(model, 4, output=tmp_path / "out")
    found = told(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "alone")
    return found


def call(model: Path, out: Path) -> list[list[str]]:
    return [["init", str(model), "--rank", "4", "-o", str(out), "--quiet"]]


def whole(process: subprocess.Popen[str], out: Path) -> dict[str, bytes] | None:
    """What is under the final name at the moment at which something is; None if the gang ended before."""
    until(lambda: out.exists() or process.poll() is not None)
    return told(out) if out.exists() else None


@pytest.mark.parametrize("seed", [0, *MANY])
def test_restarted_after_kills_it_writes_the_same(
    seed: int, model: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    dice, out = random.Random(seed), tmp_path / "out"
    strikes = [
        {"rank": 1, "attempt": 0, "event": dice.randint(1, COPYING), "within": "/copies/", "action": "kill"}
        if seed % 2 == 0
        else {"rank": 1, "attempt": 0, "event": dice.randint(1, EVENTS[1]), "action": "kill"},
        {"rank": 0, "attempt": 1, "event": dice.randint(1, EVENTS[0]), "action": "kill"},
    ]
    process = start(tmp_path / "gang", 2, call(model, out), restarts=3, strikes=strikes, patient=True)
    assert whole(process, out) == wanted
    assert end(tmp_path / "gang", process).code == 0
    assert told(out) == wanted
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("action", ["kill the agent", "end the agent"])
@pytest.mark.parametrize("seed", [0, *MANY])
def test_after_the_end_of_the_agent_one_process_goes_on(
    seed: int, action: str, model: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out, event = tmp_path / "out", random.Random(seed).randint(1, EVENTS[0])
    strikes = [{"rank": 0, "attempt": 0, "event": event, "action": action}]
    process = start(tmp_path / "gang", 2, call(model, out), strikes=strikes)
    assert whole(process, out) in (None, wanted)
    assert end(tmp_path / "gang", process).code != 0
    if not out.exists():
        initialize(model, 4, output=out, resume=True)
    assert told(out) == wanted
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("within", ["/spool/", pytest.param("/copies/", marks=pytest.mark.faults)])
def test_a_stopped_process_is_named_and_what_it_had_is_done_by_another(
    within: str, model: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    # The first file that it opens there is the probe, the second its first result.
    strikes = [{"rank": 1, "attempt": 0, "event": 2, "within": within, "action": "stop"}]
    out = tmp_path / "out"
    words = [[word for word in call(model, out)[0] if word != "--quiet"]]
    found = run(tmp_path / "gang", 2, words, strikes=strikes, hung=3.0, patient=True)
    assert found.code == 0
    assert "note: process 1" in found.err and "has not been heard of" in found.err
    assert told(out) == wanted
