"""Preference training with TRL's DPOTrainer, on a residual base and on the untouched original.

    python examples/trainers/trl_dpo.py MODEL PAIRS OUT [--steps 8]

MODEL is a folder with a causal language model and its tokenizer, PAIRS a file of JSON lines with prompt, chosen and
rejected. The reference is the start, as TRL copies the adapter: the first loss must be ln 2, with the residual base
as with `attach` on the original. Printed are the losses, and how far the converted adapter on the original is from what
was trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from ailora_tools import attach, check_start, convert, initialize


def main() -> None:
    """init, train, convert, compare: once with a residual base, once without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    pairs = [json.loads(line) for line in options.pairs.read_text(encoding="utf-8").splitlines()]
    print(json.dumps({name: run(options, pairs, name) for name in ("residual base", "attach")}, indent=2))


def run(options: argparse.Namespace, pairs: list[dict[str, str]], way: str) -> dict[str, object]:
    """The losses, and the largest difference of a logit between trained and converted over the largest logit."""
    out = options.out / way.replace(" ", "-")
    alone = way == "attach"
    stored = "keep" if alone else "float32"
    start = initialize(options.model, 8, output=out / "init", base_dtype=stored, no_base=alone)
    base = options.model if alone else start.folder
    model = PeftModel.from_pretrained(load(base), start.adapter, is_trainable=True)
    if alone:
        attach(model, start.adapter)
    check_start(model, start.adapter)
    losses = train(model, options.model, pairs, out / "run", options.steps)
    model.save_pretrained(out / "trained", selected_adapters=["default"])
    convert(out / "trained", start.folder, out / "plain")
    trained, plain = (
        logits(model, options.model),
        logits(PeftModel.from_pretrained(load(options.model), out / "plain"), options.model),
    )
    return {"losses": losses, "error": float((trained - plain).abs().max() / trained.abs().max())}


def load(folder: Path) -> torch.nn.Module:
    """In float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train(model: PeftModel, tokens: Path, pairs: list[dict[str, str]], folder: Path, steps: int) -> list[float]:
    """The losses of DPO."""
    settings = DPOConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-4, logging_steps=1,
        report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, seed=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(tokens),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: Path) -> torch.Tensor:
    """Of one question."""
    words = AutoTokenizer.from_pretrained(tokens)("How many apples are left?", return_tensors="pt")
    found: torch.Tensor = model.eval()(**words).logits
    return found.double()


if __name__ == "__main__":
    main()
