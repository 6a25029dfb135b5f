"""A classifier on MiniLM with transformers' Trainer: a new head beside the adapter, then converted, the head kept.

    python examples/trainers/classify.py MODEL TEXTS OUT [--steps 40]

TEXTS is a file with a label (0 or 1), a tab and a text on each line. The base has no classification head: `init` makes
one for the class that trains, and PEFT trains and saves it with the adapter. Printed are the losses, the share of
training texts told right, and how far the plain LoRA on the original is from the trained model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from ailora_tools import check_start, convert, initialize


def main() -> None:
    """init, train, convert, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    start = initialize(
        options.model, 8, output=options.out / "start", modules_to_save=["classifier"],
        model_class="BertForSequenceClassification", num_labels=2,
    )  # fmt: skip
    tokens = AutoTokenizer.from_pretrained(options.model)
    rows = [line.split("\t", 1) for line in options.texts.read_text(encoding="utf-8").splitlines()]
    model, losses = train(start.folder, start.adapter, tokens, rows, options.out / "run", options.steps)
    trained = options.out / "trained"
    model.save_pretrained(trained)
    done = convert(trained, start.folder, options.out / "plain")
    plain = adapted(options.model, done.folder, trainable=False)
    expected, found = (answers(one, tokens, rows) for one in (model, plain))
    right = (expected.argmax(1) == torch.tensor([int(label) for label, _ in rows])).double().mean()
    error = (found - expected).abs().max() / expected.abs().max()
    print(json.dumps({"losses": losses, "right": float(right), "error": float(error), "kept": done.kept}, indent=2))


def adapted(base: Path, adapter: Path, trainable: bool) -> PeftModel:
    """The adapter on the classifier."""
    model = BertForSequenceClassification.from_pretrained(base, num_labels=2)
    return PeftModel.from_pretrained(model, adapter, is_trainable=trainable)


def train(
    base: Path, adapter: Path, tokens: AutoTokenizer, rows: list[list[str]], folder: Path, steps: int
) -> tuple[PeftModel, list[float]]:
    """The trained model and the loss of every step."""
    model = adapted(base, adapter, trainable=True)
    check_start(model, adapter)
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
