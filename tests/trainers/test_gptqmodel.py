"""QA-LoRA where it is trained: PEFT on GPTQModel's own layers, in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import write_checkpoint
from kit.few_bits import FORMATS
from kit.trainers import SCRIPTS, answer, apart, environment, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ailora_tools import convert, initialize, merge
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS

pytestmark = pytest.mark.trainers
GPTQ = environment("gptqmodel")
LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
ROWS = [[(5 * row + 3 * place) % 64 for place in range(12)] for row in range(4)]


def write_base(folder: Path, form: str = "GPTQ 4", *, exact: bool = False) -> Path:
    """A tiny Llama, every linear layer of the stack in few bits, groups of 32, as GPTQModel writes it. `exact`: scales
    are powers of two, so that float16 has every entry."""
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
        stored = FORMATS[form](W)
        settings = stored.settings | {"desc_act": "act order" in form, "sym": False, "lm_head": False}
        tensors |= {stem + end: value.clone() for end, value in stored.pieces.items()}
        size = 0.1 if stored.settings["quant_method"] == "gptq" else 0.01
        scales = tensors[f"{stem}.scales"] * size  # those of the kit are random, and large for a model
        tensors[f"{stem}.scales"] = torch.exp2(scales.float().log2().round().clamp(-14)).half() if exact else scales
    return write_checkpoint(folder, tensors, **config.to_dict() | {"quantization_config": settings, "dtype": "float32"})


# How far apart: GPTQModel computes GPTQ in the dtype of the input, AWQ in float16 always.
FEW = {
    "GPTQ 2, version 2": 1e-5, "GPTQ 4": 1e-5, "GPTQ 4, act order": 1e-5, "GPTQ 8": 1e-5, "AWQ": 5e-3,
}  # fmt: skip


@pytest.mark.parametrize("form", FEW)
def test_the_merged_model_computes_what_peft_does_on_gptqmodel_s_layers(form: str, tmp_path: Path, line: Any) -> None:
    line.about("GPTQModel", f"{form}: a LoRA on every linear layer, `merge`", GPTQ, "gptqmodel", "peft")
    base, kind = write_base(tmp_path / "base", form, exact=True), "torch_awq" if form == "AWQ" else "gptq_torch"
    start = initialize(base, 4, alpha=6, method="lora", roles=LINEAR, output=tmp_path / "start")
    held = load_file(start.adapter / ADAPTER_WEIGHTS)
    generator = torch.Generator().manual_seed(5)
    moved = {name: 0.02 * torch.randn(W.shape, generator=generator) + W for name, W in held.items()}
    save_file(moved, start.adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    rows = write_json(tmp_path / "rows.json", ROWS)
    script = SCRIPTS / "few_bits.py"
    GPTQ.run("python", script, base, start.adapter, rows, kind, here=tmp_path, TORCHDYNAMO_DISABLE="1")
    told = answer(tmp_path)
    merge(base, start.adapter, tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")(torch.tensor(ROWS)).logits.flatten()
    line.numbers |= {"merge": apart(merged, torch.tensor(told["both"]))}
    line.numbers |= {"changed": apart(torch.tensor(told["base"]), torch.tensor(told["both"]))}
    assert told["layers"] == ["AwqLoraLinear" if form == "AWQ" else "GPTQLoraLinear"], told["under"]
    assert line.numbers["merge"] < FEW[form] < 0.02 < line.numbers["changed"]


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
