"""One failure ends the job in all processes, with one message, and a restart does not repeat it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.gang import Gang, run

from ailora_tools.output.analysis import read_analysis
from ailora_tools.output.claim import claimed

FULL = {"rank": 1, "attempt": 0, "event": 2, "within": "/copies/", "action": "fill the disk"}
BAD = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ends")
    tensors = llama_tensors()
    write_checkpoint(made / "good", tensors)
    write_checkpoint(made / "bad", {**tensors, BAD: torch.full_like(tensors[BAD], torch.nan)})
    return made


@pytest.fixture(scope="module")
def ended(folder: Path) -> Gang:
    calls = {
        "full": ["init", str(folder / "good"), "--rank", "2"],
        "locked": ["init", str(folder / "good"), "--rank", "2"],
        "init": ["init", str(folder / "bad"), "--rank", "2"],
        "nowhere": ["init", str(folder / "nowhere"), "--rank", "2"],
        "analysis": ["analyze", str(folder / "bad"), "--rank", "2", "--quiet"],
    }
    with claimed(folder / "locked", "init"):
        words = [[*words, "-o", str(folder / name)] for name, words in calls.items()]
        return run(folder / "gang", 2, words, 1, strikes=[FULL], patient=True, together=True)


def test_every_failure_is_told_once_and_is_the_exit_code(ended: Gang) -> None:
    assert ended.code == 1 and ended.codes == {0: [1, 1, 1, 1, 1], 1: [1, 1, 1, 1, 1]}
    told = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 5 and "Traceback" not in ended.err.partition("failed (exitcode")[0]


def test_another_process_that_cannot_write_says_who_where_and_why(ended: Gang) -> None:
    (told,) = [line for line in ended.err.splitlines() if "No space left on device" in line]
    assert "process 1 of 2" in told and "/full.partial/copies/1-" in told


def test_a_second_job_on_one_folder_is_refused(ended: Gang) -> None:
    assert ended.err.count("another run is writing here") == 1


def test_a_bad_matrix_leaves_nothing_of_init_and_is_left_out_of_an_analysis(ended: Gang, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"good", "bad", "gang", "analysis", "full.partial"}
    assert [row["tensor"] for row in read_analysis(folder / "analysis")["matrices"]].count(BAD) == 0
