"""The two tasks: film reviews told apart by MiniLM, and answers to maths problems by SmolLM2.

A task has batches to train on, a loss, held-out loss and score, and a measure of what happens to other text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from arms import seeded
from texts import rated, word_problems
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

HEAD_LR = 3e-3  # of the new classifier, in every arm


class Movies:
    """Positive or negative: MiniLM in float32, mean of the last states, one linear layer that is new.

    Score: accuracy. Other text: 1 - cosine between the sentence embeddings of editorials before and after.
    """

    arms: tuple[str, ...] | None = None  # all
    score = "accuracy"
    other = "drift of other text's embeddings"

    def __init__(self, model: Path, cache: Path, train: int, test: int) -> None:
        self._tokens = AutoTokenizer.from_pretrained(model)
        rows = [(text, int(rating > 0)) for rating, text in rated(cache, "movieReviewSnippets") if abs(rating) >= 0.5]
        random.Random(0).shuffle(rows)
        self.test, self.train = rows[:test], rows[test : test + train]
        self.others = [text for _, text in rated(cache, "nytEditorialSnippets")[:100]]
        with torch.no_grad():
            self._before = self._embed(self.load(model).eval(), self.others)

    @staticmethod
    def load(folder: Path) -> nn.Module:
        return AutoModel.from_pretrained(folder, dtype=torch.float32)

    def head(self, backbone: nn.Module, seed: int) -> nn.Module | None:
        """A new classifier, the same for every arm."""
        torch.manual_seed(seed)
        return nn.Linear(int(self._before.shape[1]), 2)

    def loss(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[tuple[str, int]]) -> Tensor:
        return cross_entropy(self._logits(backbone, head, rows), torch.tensor([label for _, label in rows]))

    @torch.no_grad()
    def evaluate(self, backbone: nn.Module, head: nn.Module | None) -> dict[str, float]:
        """Held-out loss and accuracy."""
        logits = torch.cat([self._logits(backbone, head, rows) for rows in _chunks(self.test, 50)])
        labels = torch.tensor([label for _, label in self.test])
        return {
            "loss": float(cross_entropy(logits, labels)),
            "score": float((logits.argmax(1) == labels).double().mean()),
        }

    @torch.no_grad()
    def other_text(self, backbone: nn.Module) -> float:
        return float((1 - cosine_similarity(self._embed(backbone, self.others), self._before)).mean())

    def _logits(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[tuple[str, int]]) -> Tensor:
        assert head is not None
        found: Tensor = head(self._embed(backbone, [text for text, _ in rows]))
        return found

    def _embed(self, backbone: nn.Module, texts: Sequence[str]) -> Tensor:
        batch = self._tokens(list(texts), padding=True, truncation=True, max_length=48, return_tensors="pt")
        states, mask = backbone(**batch).last_hidden_state, batch["attention_mask"][..., None]
        found: Tensor = (states * mask).sum(1) / mask.sum(1)
        return found


class Problems:
    """The answer after the problem: SmolLM2 with a bfloat16 base, loss on the tokens of the answer alone.

    Score: the held-out loss itself, with the sign that makes more better. Other text: its loss per token.
    """

    arms = ("lora", "pissa", "milora", "ailora", "ailora-balanced", "ailora-reversed")
    score = "minus held-out loss"
    other = "loss on other text"

    def __init__(self, model: Path, cache: Path, train: int, test: int) -> None:
        self._tokens = AutoTokenizer.from_pretrained(model)
        rows = word_problems(cache)
        random.Random(0).shuffle(rows)
        self.test, self.train = rows[:test], rows[test : test + train]
        self.others = [text for _, text in rated(cache, "nytEditorialSnippets")[:60]]

    @staticmethod
    def load(folder: Path) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def head(self, backbone: nn.Module, seed: int) -> nn.Module | None:
        return None

    def loss(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[tuple[str, str]]) -> Tensor:
        pairs = [(self._ids(f"{problem}\nAnswer:"), [*self._ids(f" {answer}"), 2]) for problem, answer in rows]
        return self._nll(backbone, pairs)

    @torch.no_grad()
    def evaluate(self, backbone: nn.Module, head: nn.Module | None) -> dict[str, float]:
        parts = [(float(self.loss(backbone, head, rows)), len(rows)) for rows in _chunks(self.test, 20)]
        loss = sum(value * size for value, size in parts) / len(self.test)
        return {"loss": loss, "score": -loss}

    @torch.no_grad()
    def other_text(self, backbone: nn.Module) -> float:
        pairs = [(ids[:1], ids[1:]) for ids in (self._ids(text) for text in self.others) if len(ids) > 1]
        return sum(float(self._nll(backbone, rows)) for rows in _chunks(pairs, 20)) / (len(pairs) / 20)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokens(text)["input_ids"][:96]
        return ids

    def _nll(self, backbone: nn.Module, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        """Mean over the tokens that are asked for; the end token pads, and labels are masked by position."""
        width = max(len(first) + len(second) for first, second in pairs)
        ids, labels = torch.full((len(pairs), width), 2), torch.full((len(pairs), width), -100)
        for row, (first, second) in enumerate(pairs):
            both = torch.tensor(first + second)
            ids[row, : len(both)] = both
            labels[row, len(first) : len(both)] = both[len(first) :]
        logits = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float()
        return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


TASKS: dict[str, Any] = {"minilm": Movies, "smollm2": Problems}


def batches(rows: Sequence[Any], size: int, seed: int) -> Iterator[list[Any]]:
    """Endless, in an order that depends on the seed alone."""
    generator = seeded(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        yield from ([rows[at] for at in order[low : low + size]] for low in range(0, len(rows) - size + 1, size))


def _chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[low : low + size] for low in range(0, len(rows), size))
