"""LLaMA-Factory's own command on a start: `llamafactory-cli train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.trainers import LN_2, assert_back, environment, losses, way_back, write_json

pytestmark = pytest.mark.trainers
LLAMA_FACTORY = environment("llama_factory")
PACKAGES = ("llamafactory", "transformers", "peft", "trl")


def train(folder: Path, **settings: Any) -> list[float]:
    """The losses of a run in `folder`, which keeps its output as `out`."""
    folder.mkdir()
    rows = [
        {"instruction": f"How many are {n} and {n + 3}?", "input": "", "output": f"{2 * n + 3}."} for n in range(32)
    ]
    pairs = [{**row, "chosen": row["output"], "rejected": "I do not know."} for row in rows]
    write_json(folder / "sft.json", rows)
    write_json(folder / "dpo.json", pairs)
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    described = {
        "sft": {"file_name": "sft.json"},
        "dpo": {"file_name": "dpo.json", "ranking": True, "columns": columns},
    }
    write_json(folder / "dataset_info.json", described)
    shared = {
        "finetuning_type": "lora", "stage": "sft", "do_train": True, "dataset": settings.get("stage", "sft"),
        "dataset_dir": str(folder), "template": "default", "cutoff_len": 128, "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_steps": 4,
        "save_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True, "seed": 0,
    }  # fmt: skip
    LLAMA_FACTORY.run("llamafactory-cli", "train", write_json(folder / "settings.yaml", shared | settings), here=folder)
    return losses(folder / "out")


def on(start: Path) -> dict[str, str]:
    return {"model_name_or_path": str(start), "adapter_name_or_path": str(start / "ailora_init")}


def test_sft(start: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("LLaMA-Factory", "SFT: start, resume, convert, merge", LLAMA_FACTORY, *PACKAGES)
    told = train(tmp_path / "run", **on(start))
    checkpoint = tmp_path / "run" / "out" / "checkpoint-2"
    resumed = train(tmp_path / "resumed", **on(start), resume_from_checkpoint=str(checkpoint))
    plain = train(tmp_path / "plain-lora", model_name_or_path=str(original), max_steps=1)
    line.numbers |= {"first loss": told[0], "first loss of the original": plain[0], "last loss": told[-1]}
    line.numbers |= {"last loss, resumed": resumed[-1]} | way_back(tmp_path / "resumed/out", start, original, tmp_path)
    assert told[0] == pytest.approx(plain[0], rel=1e-5)
    assert resumed == pytest.approx(told, rel=1e-5) and told[-1] < told[0]
    assert_back(line.numbers)


def test_dpo_against_the_original(start: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("LLaMA-Factory", "DPO with `ref_model: ORIGINAL`", LLAMA_FACTORY, *PACKAGES)
    told = train(tmp_path / "run", **on(start), stage="dpo", ref_model=str(original), max_steps=2)
    line.numbers |= {"first loss": told[0]} | way_back(tmp_path / "run/out", start, original, tmp_path)
    assert told[0] == pytest.approx(LN_2, abs=1e-4) and told[1] < told[0]
    assert_back(line.numbers)


def test_dpo_without_a_reference_compares_with_the_residual_base(start: Path, tmp_path: Path, line: Any) -> None:
    """Why the guide says to set it: the reference is the model with its adapter disabled, which is not the original."""
    line.about("LLaMA-Factory", "DPO without `ref_model`: do not", LLAMA_FACTORY, *PACKAGES)
    line.numbers["first loss"] = train(tmp_path / "run", **on(start), stage="dpo", max_steps=1)[0]
    assert abs(line.numbers["first loss"] - LN_2) > 0.05
