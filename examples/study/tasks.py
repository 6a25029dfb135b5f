"""The two tasks: film reviews told apart by MiniLM, and answers to maths problems by SmolLM2.

A task has texts to train on, others to choose the learning rate by (dev) and to be judged by (test), a loss and a
score, and a measure of what happens to text of another kind. Everything is computed in float32.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from texts import rated, word_problems
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

HEAD_LR = 3e-3  # of the new classifier, in every arm


@dataclass(frozen=True)
class Text:
    """Token ids, and what is asked: a class (`label`), or the ids from `answer` on."""

    ids: tuple[int, ...]
    label: int = 0
    answer: int = 1


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of one shuffled set of texts: the same for every arm and seed."""

    test: Sequence[Text]
    dev: Sequence[Text]
    train: Sequence[Text]

    @classmethod
    def of(cls, rows: list[Text], test: int, dev: int, train: int) -> Split:
        random.Random(0).shuffle(rows)
        return cls(rows[:test], rows[test : test + dev], rows[test + dev : test + dev + train])


class Task(Protocol):
    """`loss` is a mean over `rows`; `evaluate` adds the score; `other_text` is read before and after training."""

    split: Split
    arms: ClassVar[tuple[str, ...] | None]

    @staticmethod
    def load(folder: Path) -> nn.Module: ...

    def head(self, seed: int) -> nn.Module | None: ...

    def loss(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[Text]) -> Tensor: ...

    def evaluate(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[Text]) -> dict[str, float]: ...

    def other_text(self, backbone: nn.Module) -> float: ...


class Movies:
    """Positive or negative: mean of MiniLM's last states, one linear layer that is new.

    Score: accuracy. Other text: 1 - cosine between the sentence embeddings of editorials before and after.
    """

    arms = None  # all
    score = "accuracy"
    other = "drift of other text's embeddings"

    def __init__(self, model: Path, cache: Path, test: int, dev: int, train: int) -> None:
        self._tokens = AutoTokenizer.from_pretrained(model)
        rated_rows = [row for row in rated(cache, "movieReviewSnippets") if abs(row[0]) >= 0.5]
        rows = [Text(self._ids(text), label=int(rating > 0)) for rating, text in rated_rows]
        self.split = Split.of(rows, test, dev, train)
        self._others = _by_length([Text(self._ids(text)) for _, text in rated(cache, "nytEditorialSnippets")[:100]])
        with torch.no_grad():
            self._before = self._embed_all(self.load(model).eval(), self._others)

    @staticmethod
    def load(folder: Path) -> nn.Module:
        return AutoModel.from_pretrained(folder, dtype=torch.float32)

    def head(self, seed: int) -> nn.Module | None:
        """A new classifier, the same for every arm."""
        torch.manual_seed(seed)
        return nn.Linear(self._before.shape[1], 2)

    def loss(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[Text]) -> Tensor:
        assert head is not None
        return cross_entropy(head(self._embed(backbone, rows)), _labels(rows))

    @torch.no_grad()
    def evaluate(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[Text]) -> dict[str, float]:
        """Loss and accuracy."""
        assert head is not None
        ordered = _by_length(rows)
        logits, labels = head(self._embed_all(backbone, ordered)), _labels(ordered)
        right = (logits.argmax(1) == labels).double().mean()
        return {"loss": float(cross_entropy(logits, labels)), "score": float(right)}

    @torch.no_grad()
    def other_text(self, backbone: nn.Module) -> float:
        return float((1 - cosine_similarity(self._embed_all(backbone, self._others), self._before)).mean())

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokens(text, truncation=True, max_length=48)["input_ids"])

    def _embed_all(self, backbone: nn.Module, rows: Sequence[Text]) -> Tensor:
        return torch.cat([self._embed(backbone, chunk) for chunk in _chunks(rows, 50)])

    def _embed(self, backbone: nn.Module, rows: Sequence[Text]) -> Tensor:
        ids, mask = _padded(rows, 0)
        states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        found: Tensor = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return found


class Problems:
    """The answer after the problem, by SmolLM2: loss on the tokens of the answer alone.

    Score: minus the loss. Other text: loss on all tokens of editorials.
    """

    arms = (
        "lora", "ailora", "ailora-balanced", "ailora-reversed", "pissa", "milora", "full", "rslora", "dora", "olora",
        "nlora", "mica",
    )  # fmt: skip
    score = "minus held-out loss"
    other = "loss on other text"

    def __init__(self, model: Path, cache: Path, test: int, dev: int, train: int) -> None:
        self._tokens = AutoTokenizer.from_pretrained(model)
        self.split = Split.of([self._problem(*row) for row in word_problems(cache)], test, dev, train)
        editorials = [self._ids(text) for _, text in rated(cache, "nytEditorialSnippets")[:20]]
        self._others = [Text(ids) for ids in editorials if len(ids) > 1]

    @staticmethod
    def load(folder: Path) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def head(self, seed: int) -> nn.Module | None:
        return None

    def loss(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[Text]) -> Tensor:
        """Mean over the tokens that are asked for; only at their places are logits computed."""
        ids, mask = _padded(rows, 0)
        wanted = torch.arange(ids.shape[1]) >= torch.tensor([row.answer for row in rows])[:, None]
        labels = ids.where(wanted & mask.bool(), -100)[:, 1:]
        places = (labels >= 0).any(0).nonzero().flatten()
        logits = backbone(input_ids=ids, attention_mask=mask, logits_to_keep=places).logits
        return cross_entropy(logits.flatten(0, 1), labels[:, places].flatten())

    @torch.no_grad()
    def evaluate(self, backbone: nn.Module, head: nn.Module | None, rows: Sequence[Text]) -> dict[str, float]:
        """Mean over all tokens that are asked for."""
        chunks = list(_chunks(_by_length(rows), 20))
        counts = [sum(len(row.ids) - row.answer for row in chunk) for chunk in chunks]
        losses = [float(self.loss(backbone, head, chunk)) for chunk in chunks]
        loss = sum(one * count for one, count in zip(losses, counts, strict=True)) / sum(counts)
        return {"loss": loss, "score": -loss}

    def other_text(self, backbone: nn.Module) -> float:
        return self.evaluate(backbone, None, self._others)["loss"]

    def _problem(self, problem: str, answer: str) -> Text:
        asked = self._ids(f"{problem}\nAnswer:")
        return Text((*asked, *self._ids(f" {answer}"), self._tokens.eos_token_id), answer=len(asked))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokens(text)["input_ids"][:96])


TASKS: dict[str, Any] = {"minilm": Movies, "smollm2": Problems}


def batches(rows: Sequence[Text], size: int, seed: int) -> Iterator[list[Text]]:
    """Endless, in an order that depends on the seed alone. Texts of like length share a batch: of every eight batches
    the rows are sorted, so that little is padding, and the batches shuffled again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = [rows[at] for at in torch.randperm(len(rows), generator=generator).tolist()]
        for eight in _chunks(order[: len(order) // size * size], 8 * size):
            grouped = list(_chunks(_by_length(eight), size))
            yield from (list(grouped[at]) for at in torch.randperm(len(grouped), generator=generator).tolist())


def _padded(rows: Sequence[Text], pad: int) -> tuple[Tensor, Tensor]:
    """Ids (texts, length), padded on the right, and the mask of what is text."""
    parts = [torch.tensor(row.ids) for row in rows]
    mask = pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
    return pad_sequence(parts, batch_first=True, padding_value=pad), mask


def _labels(rows: Sequence[Text]) -> Tensor:
    return torch.tensor([row.label for row in rows])


def _by_length(rows: Sequence[Text]) -> list[Text]:
    return sorted(rows, key=lambda row: len(row.ids))


def _chunks(rows: Sequence[Text], size: int) -> Iterator[Sequence[Text]]:
    return (rows[low : low + size] for low in range(0, len(rows), size))
