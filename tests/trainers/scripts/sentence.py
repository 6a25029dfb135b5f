"""sentence-transformers on a start.

sentence.py train START OUT                             train it on a few pairs; told.json gets the losses
sentence.py encode MODEL[+ADAPTER] ...                  told.json gets embeddings by each of the models
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss

TEXTS = [f"{n} apples and {n + 3} pears are {2 * n + 3} fruits." for n in range(8)]
PAIRS = [{"anchor": f"How many are {n} and {n + 3}?", "positive": f"{2 * n + 3}."} for n in range(16)]


def tell(found: object) -> None:
    """In a file, as a program prints much."""
    Path("told.json").write_text(json.dumps(found))


def train(start: Path, out: Path) -> None:
    """`is_trainable` is what makes the adapter train."""
    model = SentenceTransformer(str(start), device="cpu")
    model.load_adapter(str(start / "ailora_init"), is_trainable=True)
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(out / "run"), max_steps=4, per_device_train_batch_size=16, learning_rate=2e-3,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    data, loss = Dataset.from_list(PAIRS), MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(model=model, args=settings, train_dataset=data, loss=loss)
    trainer.train()
    model.save_pretrained(str(out))
    tell([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def embeddings(named: str) -> list[list[float]]:
    """By a model, or by a model and an adapter."""
    folder, _, adapter = named.partition("+")
    model = SentenceTransformer(folder, device="cpu")
    if adapter:
        model.load_adapter(adapter)
    return model.encode(TEXTS).tolist()


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(*map(Path, sys.argv[2:]))
    else:
        tell([embeddings(named) for named in sys.argv[2:]])
