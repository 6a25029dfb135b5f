"""Two processes of torchrun train a masked start of GPT-2 under FSDP2: `masked.py before|after START`.

The mask is set before or after `fully_shard`. told.json gets the largest entry of B outside the blocks of W^Q and W^V
after three steps, or that the mask was refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from ailora_tools import AiloraError, mask_fused_gradients
from ailora_tools.output.manifest import read_manifest
from ailora_tools.surgery.blocks import block_mask


def train(when: str, start: Path) -> float:
    """The largest entry outside the blocks."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, start / "ailora_init", is_trainable=True)
    if when == "before":
        mask_fused_gradients(model, start / "ailora_init")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.get_base_model().transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if when == "after":
        mask_fused_gradients(model, start / "ailora_init")
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2, weight_decay=0.0)
    rows = torch.randint(3, 120, (4, 12), generator=torch.Generator().manual_seed(dist.get_rank()))
    for _ in range(3):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return outside(start, weights) if dist.get_rank() == 0 else 0.0


def outside(start: Path, weights: dict[str, torch.Tensor]) -> float:
    """Over all fused modules."""
    fused: dict[str, list[object]] = {}
    for record in read_manifest(start).modules:
        fused.setdefault(record.module, []).append(record)
    factors = {name: next(value for key, value in weights.items() if f"{name}.lora_B" in key) for name in fused}
    return max(float((factors[name] * (1 - block_mask(records))).abs().max()) for name, records in fused.items())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    try:
        found: float | str = train(sys.argv[1], Path(sys.argv[2]))
    except AiloraError as error:
        found = str(error)
    if dist.get_rank() == 0:
        Path("told.json").write_text(json.dumps(found))
    dist.destroy_process_group()
