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
HERE = Path("/proc/self/clear_refs")


def peak(scratch: Path, side: int, rows: int, *verbs: str) -> int:
    """Of the last verb; those before it make what it needs."""
    paths = [str(Path(peaks.__file__).parents[1]), str(Path(peaks.__file__).parents[2])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, peaks.__file__, str(scratch), str(side), str(rows), *verbs]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(json.loads(done.stdout)[verbs[-1]])


@pytest.mark.skipif(not HERE.exists(), reason="the peak of a process can be reset on Linux only")
@pytest.mark.parametrize(
    ("side", "rows", "verbs"),
    [
        (2048, 512, ["init"]),
        (2048, 512, ["init --no-base"]),
        (2048, 512, ["analyze"]),
        (1024, 1024, ["analyze --against"]),
        (2048, 512, ["init", "convert"]),
        (2048, 512, ["init", "verify"]),
        (2048, 512, ["init --no-base", "verify of --no-base"]),
        (2048, 512, ["init", "merge"]),
        pytest.param(2048, 2048, ["init"], marks=pytest.mark.slow),
        pytest.param(4096, 1024, ["init --no-base"], marks=pytest.mark.slow),
        pytest.param(4096, 1024, ["analyze"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_stated_is_near_the_peak(side: int, rows: int, verbs: list[str], tmp_path: Path) -> None:
    found = peak(tmp_path, side, rows, *verbs)
    stated = inspect_checkpoint(tmp_path / "model").working_memory[verbs[-1]].total()
    assert found <= WITHIN * stated
    if verbs[-1] not in BOUNDS:
        assert stated <= WITHIN * found


def test_every_verb_states_more_for_more_matrices(tmp_path: Path) -> None:
    needs = inspect_checkpoint(peaks.model(tmp_path / "model", 256, 128, 0)).working_memory
    assert tuple(needs) == VERBS
    assert all(0 < need.each < need.total(1) < need.total(2) for need in needs.values())
