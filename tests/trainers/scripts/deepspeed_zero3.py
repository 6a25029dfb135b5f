"""transformers' Trainer under DeepSpeed's ZeRO-3: `deepspeed_zero3.py BASE ADAPTER|- ROWS.json OUT STEPS`.

told.json gets the losses over all rows, OUT the trained adapter. Without an adapter (-) a new LoRA is trained.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

ZERO_3 = {
    "zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 1,
}  # fmt: skip

base, adapter, file, out, steps = sys.argv[1:]
set_seed(0)
rows = torch.tensor(json.loads(Path(file).read_text()))
settings = TrainingArguments(  # made before the model, so that the weights are partitioned while they are loaded
    output_dir=f"{out}/run", max_steps=int(steps), per_device_train_batch_size=len(rows), learning_rate=1e-2,
    lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    deepspeed=ZERO_3,
)  # fmt: skip
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
if adapter == "-":
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
else:
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
trainer = Trainer(model=model, args=settings, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
trainer.train()
assert trainer.is_deepspeed_enabled and any(hasattr(one, "ds_id") for one in model.parameters())
trainer.save_model(out)
told = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
Path("told.json").write_text(json.dumps(told))
