"""From init to a plain LoRA and a merged model with TRL's SFTTrainer, checked at every step.

    python examples/trainers/trl_sft.py MODEL TEXTS OUT [--steps 20] [--dtype float32]

MODEL is a folder with a causal language model and its tokenizer, TEXTS a file with one text a line. The trainer gets a
PeftModel and no `peft_config`: with one it would make a second adapter. It is stopped half way and resumed from its
checkpoint. Printed are the losses and how far the converted and the merged model are from the trained one.

With --dtype float32 the touched matrices are stored so, and all ways agree to rounding. With bfloat16 the residual base
was rounded once, which the original never was: a LoRA on the original cannot know of that difference.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from ailora_tools import check_start, convert, initialize, merge, verify


def main() -> None:
    """init, train, interrupt, resume, convert, merge, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    out, dtype = options.out, getattr(torch, options.dtype)
    stored = "float32" if dtype == torch.float32 else "keep"
    start = initialize(options.model, 8, output=out / "init", base_dtype=stored)
    assert verify(start.folder).holds
    texts = options.texts.read_text(encoding="utf-8").splitlines()
    train(start.folder, texts, out / "run", options.steps // 2, options.steps, dtype, resume=False)
    losses = train(start.folder, texts, out / "run", options.steps, options.steps, dtype, resume=True)
    trained = out / "run" / f"checkpoint-{options.steps}"

    convert(trained, start.folder, out / "plain")
    merge(start.folder, trained, out / "merged", base_dtype=stored)
    merge(options.model, out / "plain", out / "merged-plain", base_dtype=stored)

    expected = logits(adapted(start.folder, trained, dtype), options.model, texts)
    found = {
        "plain LoRA on the original": adapted(options.model, out / "plain", dtype),
        "merged into the residual base": AutoModelForCausalLM.from_pretrained(out / "merged", dtype=dtype),
        "plain LoRA merged": AutoModelForCausalLM.from_pretrained(out / "merged-plain", dtype=dtype),
    }
    by_peft(start.folder, trained, out, dtype)
    found["PEFT's own conversion on the original"] = adapted(options.model, out / "peft-plain", dtype)
    errors = {name: apart(logits(model, options.model, texts), expected) for name, model in found.items()}
    untrained = apart(logits(AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype), options.model, texts),
                      expected)  # fmt: skip
    print(json.dumps({"losses": losses, "errors": errors, "training changed": untrained}, indent=2))


def by_peft(base: Path, trained: Path, out: Path, dtype: torch.dtype) -> None:
    """What PEFT offers: it loads the model, and writes into the folder of the start, so it gets a copy of that."""
    shutil.copytree(base / "ailora_init", out / "start")
    model = adapted(base, trained, dtype)
    model.save_pretrained(out / "peft-plain", path_initial_model_for_weight_conversion=str(out / "start"))


def adapted(base: Path, adapter: Path, dtype: torch.dtype, trainable: bool = False) -> PeftModel:
    """The adapter on a base."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, adapter, is_trainable=trainable)


def train(
    base: Path, texts: list[str], folder: Path, until: int, steps: int, dtype: torch.dtype, resume: bool
) -> list[float]:
    """SFT up to step `until` of a schedule of `steps`; the losses of the whole run."""
    settings = SFTConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1,
        save_steps=steps // 2, report_to=[], use_cpu=True, max_length=64, seed=0, gradient_checkpointing=False,
        bf16=False, disable_tqdm=True,
    )  # fmt: skip
    model = adapted(base, base / "ailora_init", dtype, trainable=True)
    check_start(model, base / "ailora_init")
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    if until < steps:
        trainer.args.max_steps = until
    trainer.train(resume_from_checkpoint=resume or None)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: Path, texts: list[str]) -> torch.Tensor:
    """Of the first text."""
    words = AutoTokenizer.from_pretrained(tokens)(texts[0], return_tensors="pt")
    found: torch.Tensor = model.eval()(**words).logits
    return found.double()


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
