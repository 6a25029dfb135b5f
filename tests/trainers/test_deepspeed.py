"""DeepSpeed's ZeRO-3 below transformers' Trainer, one process on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.trainers import SCRIPTS, answer, assert_back, environment, tiny_decoder, way_back, write_json

from ailora_tools import initialize

pytestmark = pytest.mark.trainers
DEEPSPEED = environment("deepspeed")


def train(base: Path, adapter: Path | str, out: Path, steps: int) -> list[float]:
    out.mkdir()
    rows = write_json(out / "rows.json", [[3 + (7 * row + column) % 100 for column in range(12)] for row in range(8)])
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    # It builds a small operator when it starts, once for all runs.
    of_the_cpu = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(DEEPSPEED.folder / "extensions")}
    script = (SCRIPTS / "deepspeed_zero3.py", base, adapter, rows, out / "trained", str(steps))
    DEEPSPEED.run("python", *script, here=out, **of_the_cpu, **alone)
    found: list[float] = answer(out)
    return found


def test_zero_3_trains_and_the_model_comes_back(tmp_path: Path, line: Any) -> None:
    line.about("DeepSpeed", "ZeRO-3, one process: convert, merge", DEEPSPEED, "deepspeed", "transformers", "peft")
    original = tiny_decoder(tmp_path / "model")
    start = initialize(original, 4, output=tmp_path / "start").folder
    losses = train(start, start / "ailora_init", tmp_path / "run", 4)
    plain = train(original, "-", tmp_path / "plain-lora", 1)
    line.numbers |= {"first loss": losses[0], "first loss of the original": plain[0], "last loss": losses[-1]}
    line.numbers |= way_back(tmp_path / "run" / "trained", start, original, tmp_path)
    assert losses[0] == pytest.approx(plain[0], rel=1e-5) and losses[-1] < losses[0]
    assert_back(line.numbers)
