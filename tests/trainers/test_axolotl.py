"""Axolotl's own command on a start: `axolotl train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.trainers import LN_2, assert_back, environment, losses, way_back, write_json, write_lines

from ailora_tools import convert
from ailora_tools.errors import AiloraError

pytestmark = pytest.mark.trainers
AXOLOTL = environment("axolotl")
PACKAGES = ("axolotl", "transformers", "peft", "trl")
# A CPU has neither these number formats nor the kernels.
ON_A_CPU = dict.fromkeys(
    ("bf16", "fp16", "tf32", "flash_attention", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False
)
PREFERENCES = {
    "field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected",
    "prompt_format": "{prompt}", "chosen_format": "{chosen}", "rejected_format": "{rejected}",
}  # fmt: skip


def train(folder: Path, **settings: Any) -> list[float]:
    """The losses of a run in `folder`, which keeps its output as `out`."""
    folder.mkdir()
    asked = [f"How many are {n} and {n + 3}?" for n in range(32)]
    texts = [{"instruction": text, "input": "", "output": f"{2 * n + 3}."} for n, text in enumerate(asked)]
    pairs = [{"prompt": text, "chosen": f" {2 * n + 3}.", "rejected": " No."} for n, text in enumerate(asked)]
    data, kind = (pairs, PREFERENCES) if "rl" in settings else (texts, "alpaca")
    file = write_lines(folder / "data.jsonl", data)
    shared = {
        "adapter": "lora", "lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj", "v_proj"],
        "datasets": [{"path": str(file), "ds_type": "json", "split": "train", "type": kind}], "sequence_len": 128,
        "micro_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "lr_scheduler": "constant",
        "optimizer": "adamw_torch", "max_steps": 4, "save_steps": 2, "logging_steps": 1, "val_set_size": 0, "seed": 0,
        "gradient_checkpointing": False, "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "rows"), **ON_A_CPU,
    }  # fmt: skip
    file = write_json(folder / "settings.yaml", shared | settings)
    AXOLOTL.run("axolotl", "train", file, here=folder, AXOLOTL_DO_NOT_TRACK="1")
    return losses(folder / "out")


def on(start: Path) -> dict[str, str]:
    return {"base_model": str(start), "lora_model_dir": str(start / "ailora_init")}


def test_sft(start: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("Axolotl", "SFT: start, resume, convert, merge", AXOLOTL, *PACKAGES)
    told = train(tmp_path / "run", **on(start))
    checkpoint = tmp_path / "run" / "out" / "checkpoint-2"
    resumed = train(tmp_path / "resumed", **on(start), resume_from_checkpoint=str(checkpoint))
    plain = train(tmp_path / "plain-lora", base_model=str(original), max_steps=1)
    line.numbers |= {"first loss": told[0], "first loss of the original": plain[0], "last loss": told[-1]}
    line.numbers |= {"last loss, resumed": resumed[-1]} | way_back(tmp_path / "resumed/out", start, original, tmp_path)
    assert told[0] == pytest.approx(plain[0], rel=1e-5)
    assert resumed == pytest.approx(told, rel=1e-5) and told[-1] < told[0]
    assert_back(line.numbers)


def test_preference_training_ignores_the_start(start: Path, tmp_path: Path, line: Any) -> None:
    """Why the guide says not to: a new LoRA is made on the residual base, and the first loss looks well."""
    line.about("Axolotl", "`rl: dpo`: do not, the start is ignored; `convert` refuses", AXOLOTL, *PACKAGES)
    line.numbers["first loss"] = train(tmp_path / "run", **on(start), rl="dpo", max_steps=2)[0]
    assert line.numbers["first loss"] == pytest.approx(LN_2, abs=1e-4)
    with pytest.raises(AiloraError, match="not like those at the start"):
        convert(tmp_path / "run/out", start, tmp_path / "plain")
