"""Two processes of torchrun train the start on rows of tokens: `parallel.py ddp|fsdp2 START ROWS.json OUT`.

`ddp` is transformers' Trainer, which wraps the model by itself; `fsdp2` a plain loop over `fully_shard`. told.json
gets the losses over all rows, OUT the trained adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

RATE, STEPS = 1e-2, 3


def by_trainer(model: PeftModel, rows: torch.Tensor, out: Path) -> list[float]:
    """DDP, half of the rows in each process."""
    settings = TrainingArguments(
        output_dir=str(out / "run"), max_steps=STEPS, per_device_train_batch_size=len(rows) // 2, learning_rate=RATE,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, ddp_backend="gloo",
    )  # fmt: skip
    trainer = Trainer(model=model, args=settings, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
    trainer.train()
    assert dist.get_world_size() == 2
    if dist.get_rank() == 0:
        model.save_pretrained(out)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def by_fsdp2(model: PeftModel, rows: torch.Tensor, out: Path) -> list[float]:
    """Every layer is sharded over both processes; the whole adapter is gathered at the end."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATE, weight_decay=0.0)
    half = rows.chunk(dist.get_world_size())[dist.get_rank()]
    told = []
    for _ in range(STEPS):
        loss = model(input_ids=half, labels=half).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach()
        dist.all_reduce(mean)
        told.append(float(mean) / dist.get_world_size())
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        model.save_pretrained(out, state_dict=get_peft_model_state_dict(model, state_dict=whole))
    return told


if __name__ == "__main__":
    way, start, file, out = sys.argv[1], *map(Path, sys.argv[2:])
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, start / "ailora_init", is_trainable=True)
    train = {"ddp": by_trainer, "fsdp2": by_fsdp2}[way]
    told = train(model, torch.tensor(json.loads(file.read_text())), out)
    if dist.get_rank() == 0:
        Path("told.json").write_text(json.dumps(told))
    dist.destroy_process_group()
