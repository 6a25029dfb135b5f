"""What `inspect` states that a verb needs, against the peaks of real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit import peaks

from ailora_tools import inspect_checkpoint
from ailora_tools.verbs.memory import VERBS

WITHIN = 1.5
# Verbs whose shards other rooms read are only held to what they need, not to how little they might.
BOUNDS = ("verify", "verify of --no-base", "merge")
needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process can be reset on Linux only"
)


def peak(scratch: Path, side: int, rows: int, verb: str) -> int:
    """Of one verb in a process of its own; what it needs of earlier verbs is in `scratch`."""
    paths = [str(Path(peaks.__file__).parents[1]), str(Path(peaks.__file__).parents[2])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, peaks.__file__, str(scratch), str(side), str(rows), verb]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(json.loads(done.stdout)[verb])


def require_near(scratch: Path, verb: str, found: int) -> None:
    stated = inspect_checkpoint(scratch / "model").working_memory[verb].total()
    assert found <= WITHIN * stated
    if verb not in BOUNDS:
        assert stated <= WITHIN * found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peaks")


@needs_linux
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "analyze --against"])
def test_what_is_stated_is_near_the_peak(verb: str, scratch: Path) -> None:
    """In this order each finds what it needs."""
    require_near(scratch, verb, peak(scratch, 2048, 512, verb))


@needs_linux
def test_what_a_comparison_is_stated_to_need_is_near_the_peak(tmp_path: Path) -> None:
    require_near(tmp_path, "analyze --against", peak(tmp_path, 1024, 1024, "analyze --against"))


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    "verb", ["init", *(pytest.param(v, marks=pytest.mark.faults) for v in ("init --no-base", "analyze"))]
)
def test_so_it_is_of_larger_matrices(verb: str, tmp_path: Path) -> None:
    require_near(tmp_path, verb, peak(tmp_path, 4096, 1024, verb))


def test_every_verb_states_more_for_more_matrices(tmp_path: Path) -> None:
    needs = inspect_checkpoint(peaks.model(tmp_path / "model", 256, 128, 0)).working_memory
    assert tuple(needs) == VERBS
    assert all(0 < need.each < need.total(1) < need.total(2) for need in needs.values())
