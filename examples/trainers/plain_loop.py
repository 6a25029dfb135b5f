"""PEFT and a plain torch loop: start, learning rates by role, train, convert, and compare on the original base.

    python examples/trainers/plain_loop.py MODEL TEXTS OUT [--steps 12]

MODEL is a causal language model, TEXTS a file with a text on each line. Printed are the losses, and how far the plain
LoRA on the original is from the trained model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ailora_tools import check_start, convert, initialize, lr_groups


def main() -> None:
    """init, train, convert, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    tokens = AutoTokenizer.from_pretrained(options.model)
    texts = options.texts.read_text(encoding="utf-8").splitlines()
    start = initialize(options.model, 8, base_dtype="float32", output=options.out / "start")
    model = PeftModel.from_pretrained(load(start.folder), start.adapter, is_trainable=True)
    check_start(model, start.adapter)
    optimizer = torch.optim.AdamW(lr_groups(model, start.adapter, lr=1e-3))  # no decay of what holds the original
    losses = []
    for step in range(options.steps):
        batch = encode(tokens, texts[4 * step : 4 * step + 4])
        loss = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.save_pretrained(options.out / "trained")
    done = convert(options.out / "trained", start.folder, options.out / "plain")
    plain = PeftModel.from_pretrained(load(options.model), done.folder)
    probe = encode(tokens, texts[:1])
    with torch.no_grad():
        expected, found = (one.eval()(**probe).logits.double() for one in (model, plain))
    error = (found - expected).abs().max() / expected.abs().max()
    print(json.dumps({"losses": losses, "error": float(error)}, indent=2))


def load(folder: Path) -> torch.nn.Module:
    """In float32, so that only the adapter's own arithmetic is compared."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def encode(tokens: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, torch.Tensor]:
    """Padded on the right, at most 64 tokens."""
    tokens.pad_token = tokens.pad_token or tokens.eos_token
    batch = tokens(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


if __name__ == "__main__":
    main()
