"""QA-LoRA on GPTQModel's layers: `gptq_pooled.py MODEL START ROWS.json OUT [PLAIN]`.

START, an adapter with `use_qalora`, is loaded by PEFT and trained for five steps. told.json gets the logits of the
base, of base and adapter at the start and after training, and of the saved adapter loaded again. With PLAIN, START is
what was trained, and the logits are those with START and with the plain LoRA in PLAIN.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora.gptq import GPTQLoraLinear
from transformers import AutoModelForCausalLM, GPTQConfig


def load(model: Path, adapter: Path | None = None, *, train: bool = False) -> torch.nn.Module:
    """In float16 as GPTQ has it; kernels in plain torch, as the others are compiled for minutes."""
    bits = GPTQConfig(bits=4, backend="gptq_torch")
    base = AutoModelForCausalLM.from_pretrained(model, quantization_config=bits, dtype=torch.float32, device_map="cpu")
    return base if adapter is None else PeftModel.from_pretrained(base, adapter, is_trainable=train)


def logits(model: torch.nn.Module, rows: torch.Tensor) -> list[float]:
    with torch.no_grad():
        return model.eval()(rows).logits.float().flatten().tolist()


def train(model: PeftModel, rows: torch.Tensor) -> list[float]:
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-2)
    losses = []
    for _ in range(5):
        loss = model.train()(rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    model, start, rows, *folders = map(Path, sys.argv[1:])
    words = torch.tensor(json.loads(rows.read_text()))
    if len(folders) == 2:
        told = {"trained": logits(load(model, start), words), "plain": logits(load(model, folders[1]), words)}
    else:
        held = load(model, start, train=True)
        layers = sum(isinstance(module, GPTQLoraLinear) for module in held.modules())
        told = {"base": logits(load(model), words), "start": logits(held, words), "layers": layers}
        told |= {"losses": train(held, words), "trained": logits(held, words)}
        held.save_pretrained(folders[0])
        told |= {"again": logits(load(model, folders[0]), words)}
    Path("told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
