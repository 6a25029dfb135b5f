"""ms-swift's own commands on a start: `swift sft` and `swift rlhf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.trainers import LN_2, assert_back, environment, losses, way_back, write_lines

pytestmark = pytest.mark.trainers
MS_SWIFT = environment("ms_swift")
PACKAGES = ("ms-swift", "transformers", "peft", "trl")
SFT, DPO = ("sft",), ("rlhf", "--rlhf_type", "dpo")


def train(folder: Path, verb: tuple[str, ...], **options: object) -> list[float]:
    """The losses of a run in `folder`, which keeps its output as `out`."""
    folder.mkdir()
    rows = [(f"How many are {n} and {n + 3}?", f"{2 * n + 3}.") for n in range(32)]
    talk = [[{"role": "user", "content": one}, {"role": "assistant", "content": other}] for one, other in rows]
    more = {} if verb == SFT else {"rejected_response": "I do not know."}
    data = write_lines(folder / "data.jsonl", [{"messages": messages, **more} for messages in talk])
    shared = {
        "model_type": "llama", "template": "dummy", "tuner_type": "lora", "torch_dtype": "float32", "dataset": data,
        "split_dataset_ratio": 0, "output_dir": folder / "out", "add_version": "false", "use_cpu": "true",
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "gradient_checkpointing": "false",
        "learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_steps": 4, "save_steps": 2, "logging_steps": 1,
        "report_to": "none", "use_hf": "true", "seed": 0,
    }  # fmt: skip
    given = [str(word) for name, value in (shared | options).items() for word in (f"--{name}", value)]
    MS_SWIFT.run("swift", *verb, *given, here=folder)
    return losses(folder / "out")


def on(start: Path) -> dict[str, Path]:
    return {"model": start, "adapters": start / "ailora_init"}


def test_sft(start: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("ms-swift", "SFT: start, resume, convert, merge", MS_SWIFT, *PACKAGES)
    told = train(tmp_path / "run", SFT, **on(start))
    checkpoint = tmp_path / "run" / "out" / "checkpoint-2"
    resumed = train(tmp_path / "resumed", SFT, **on(start), resume_from_checkpoint=checkpoint)
    plain = train(tmp_path / "plain-lora", SFT, model=original, max_steps=1)
    trained = tmp_path / "resumed" / "out" / "checkpoint-4"
    line.numbers |= {"first loss": told[0], "first loss of the original": plain[0], "last loss": told[-1]}
    line.numbers |= {"last loss, resumed": resumed[-1]} | way_back(trained, start, original, tmp_path)
    assert told[0] == pytest.approx(plain[0], rel=1e-5)
    assert resumed == pytest.approx(told, rel=1e-5) and told[-1] < told[0]
    assert_back(line.numbers)


def test_dpo_against_the_start(start: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("ms-swift", "DPO with `--ref_adapters START/ailora_init`", MS_SWIFT, *PACKAGES)
    told = train(tmp_path / "run", DPO, **on(start), ref_adapters=start / "ailora_init", max_steps=2)
    line.numbers |= {"first loss": told[0]} | way_back(tmp_path / "run/out/checkpoint-2", start, original, tmp_path)
    assert told[0] == pytest.approx(LN_2, abs=1e-4) and told[1] < told[0]
    assert_back(line.numbers)


def test_dpo_without_a_reference_compares_with_the_residual_base(start: Path, tmp_path: Path, line: Any) -> None:
    """Why the guide says to set it: the reference is the model with its adapter disabled, which is not the original."""
    line.about("ms-swift", "DPO without `--ref_adapters`: do not", MS_SWIFT, *PACKAGES)
    line.numbers["first loss"] = train(tmp_path / "run", DPO, **on(start), max_steps=1)[0]
    assert abs(line.numbers["first loss"] - LN_2) > 0.05
