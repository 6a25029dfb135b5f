"""QA-LoRA where it is trained: PEFT on GPTQModel's own layers, in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import write_checkpoint
from kit.few_bits import FORMATS
from kit.trainers import SCRIPTS, answer, apart, environment, write_json
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ailora_tools import convert, initialize, merge

pytestmark = pytest.mark.trainers
GPTQ = environment("gptqmodel")
ROWS = [[(5 * row + 3 * place) % 64 for place in range(12)] for row in range(4)]


def write_base(folder: Path) -> Path:
    """A tiny Llama, every linear layer of the stack in GPTQ's four bits, groups of 32, as GPTQModel writes it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for name, W in LlamaForCausalLM(config).state_dict().items():
        stem = name.removesuffix(".weight")
        if "_proj" not in name:
            tensors[name] = W.clone()
            continue
        stored = FORMATS["GPTQ 4"](W)
        settings = stored.settings | {"desc_act": False, "sym": False, "lm_head": False}
        tensors |= {stem + end: value.clone() for end, value in stored.pieces.items()}
        tensors[f"{stem}.scales"] *= 0.1  # those of the kit are random, and large for a model
    return write_checkpoint(folder, tensors, **config.to_dict() | {"quantization_config": settings, "dtype": "float32"})


def test_qa_lora_trains_on_gptqmodel_s_layers_and_is_the_plain_lora(tmp_path: Path, line: Any) -> None:
    line.about("GPTQModel", "QA-LoRA: train with PEFT, save, load, convert, merge", GPTQ, "gptqmodel", "peft")
    base = write_base(tmp_path / "base")
    start = initialize(base, 4, alpha=6, method="qalora", output=tmp_path / "start")
    rows = write_json(tmp_path / "rows.json", ROWS)
    script = SCRIPTS / "gptq_pooled.py"
    GPTQ.run("python", script, base, start.adapter, rows, tmp_path / "trained", here=tmp_path, TORCHDYNAMO_DISABLE="1")
    first = answer(tmp_path)
    convert(tmp_path / "trained", start.folder, tmp_path / "plain")
    merge(base, tmp_path / "trained", tmp_path / "merged", dtype="float32")
    GPTQ.run(
        "python", script, base, tmp_path / "trained", rows, tmp_path, tmp_path / "plain", here=tmp_path,
        TORCHDYNAMO_DISABLE="1",
    )  # fmt: skip
    second = answer(tmp_path)
    found = {name: torch.tensor(first[name]) for name in ("base", "start", "trained", "again")}
    with torch.no_grad():
        merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")(torch.tensor(ROWS)).logits.flatten()
    plain = torch.tensor(second["plain"])
    line.numbers |= {"first loss": first["losses"][0], "last loss": first["losses"][-1]}
    line.numbers |= {
        "step 0": apart(found["start"], found["base"]),
        "loaded again": apart(found["again"], found["trained"]),
    }
    line.numbers |= {"convert": apart(plain, torch.tensor(second["trained"])), "merge": apart(merged, found["trained"])}
    line.numbers |= {"changed": apart(found["base"], found["trained"])}
    assert first["layers"] == 4 and first["losses"][-1] < first["losses"][0]
    assert line.numbers["step 0"] == line.numbers["loaded again"] == 0
    assert line.numbers["convert"] < 1e-5 < 1e-2 < line.numbers["changed"]
    assert line.numbers["merge"] < 2e-3  # the layers compute in float16
