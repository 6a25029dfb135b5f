"""A classifier on MiniLM with transformers' Trainer: a new head beside the adapter, then converted, the head kept.

    python examples/trainers/classify.py MODEL TEXTS OUT [--steps 40]

TEXTS is a file with a label (0 or 1), a tab and a text on each line. The base has no classification head: Auto makes
one anew, and `modules_to_save` trains and saves it with the adapter. PEFT wants such a module's tensors in the adapter
that it loads, so they are put into a copy of the start. Printed are the losses, the share of training texts told right,
and how far the plain LoRA on the original is from the trained model.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ailora_tools import convert, initialize


def main() -> None:
    """init, train, convert, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    start = initialize(named(options.model, options.out / "model"), 8, output=options.out / "start")
    tokens = AutoTokenizer.from_pretrained(options.model)
    rows = [line.split("\t", 1) for line in options.texts.read_text(encoding="utf-8").splitlines()]
    adapter = with_head(start.adapter, start.folder, options.out / "start-with-head")
    model, losses = train(start.folder, adapter, tokens, rows, options.out / "run", options.steps)
    trained = options.out / "trained"
    model.save_pretrained(trained)
    done = convert(trained, start.folder, options.out / "plain")
    plain = adapted(options.out / "model", done.folder, trainable=False)
    expected, found = (answers(one, tokens, rows) for one in (model, plain))
    right = (expected.argmax(1) == torch.tensor([int(label) for label, _ in rows])).double().mean()
    error = (found - expected).abs().max() / expected.abs().max()
    print(json.dumps({"losses": losses, "right": float(right), "error": float(error), "kept": done.kept}, indent=2))


def named(model: Path, folder: Path) -> Path:
    """The model saved with its new head, so that its names are those that the trainer will see."""
    set_seed(0)
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def with_head(adapter: Path, base: Path, folder: Path) -> Path:
    """A copy of the adapter that says that the classifier trains too, and holds it."""
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["classifier"]}))
    head = {
        f"base_model.model.{key}": value
        for key, value in load_file(base / "model.safetensors").items()
        if key.startswith("classifier.")
    }
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), **head}, path, {"format": "pt"})
    return folder


def adapted(base: Path, adapter: Path, trainable: bool) -> PeftModel:
    """The adapter on the classifier."""
    model = AutoModelForSequenceClassification.from_pretrained(base)
    return PeftModel.from_pretrained(model, adapter, is_trainable=trainable)


def train(
    base: Path, adapter: Path, tokens: AutoTokenizer, rows: list[list[str]], folder: Path, steps: int
) -> tuple[PeftModel, list[float]]:
    """The trained model and the loss of every step."""
    model = adapted(base, adapter, trainable=True)
    examples = [{**tokens(text, truncation=True, max_length=64), "labels": int(label)} for label, text in rows]
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=16, learning_rate=2e-3, logging_steps=1,
        report_to=[], use_cpu=True, seed=0, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=settings, train_dataset=Dataset.from_list(examples),
        data_collator=DataCollatorWithPadding(tokens),
    )  # fmt: skip
    trainer.train()
    return model, [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def answers(model: PeftModel, tokens: AutoTokenizer, rows: list[list[str]]) -> torch.Tensor:
    """Logits of every text."""
    texts = [text for _, text in rows]
    found: torch.Tensor = model.eval()(**tokens(texts, padding=True, truncation=True, return_tensors="pt")).logits
    return found.double()


if __name__ == "__main__":
    main()
