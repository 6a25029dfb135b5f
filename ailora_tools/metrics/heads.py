"""One attention head at a time: the rows of W^Q, W^K and W^V that belong to it, the columns of W^O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..linalg.components import gram
from ..matrices.heads import head_counts
from ..matrices.text_config import text_config
from ..methods import ATTENTION

_HEAD_DIM = ("head_dim", "d_kv", "attention_head_size")
_NESTED = ("decoder", "encoder")  # of models put together from two


@dataclass(frozen=True)
class Heads:
    """How many heads share the rows: `query` for W^Q and W^O, `key_value` for W^K and W^V (fewer with GQA).

    dim: rows of one key or value head, None where config.json does not state it.
    """

    query: int
    key_value: int
    dim: int | None

    def count(self, role: str, shape: tuple[int, int]) -> int | None:
        """Heads in a matrix of that role; None where its rows (W^O: columns) do not divide into them, or that
        no head is in."""
        if role not in ATTENTION:
            return None
        number = self.query if role in ("q", "o") else self.key_value
        width = shape[1] if role == "o" else shape[0]
        if self.dim and width % self.dim == 0 and role not in ("q", "o"):
            number = width // self.dim  # layers may differ, and config files forget the key-value heads
        return number if number and width % number == 0 else None


def read_heads(config: Mapping[str, Any]) -> Heads | None:
    """The head counts of a config.json; None where it does not state them. A nested text part is looked into."""
    parts = (config[name] for name in _NESTED if isinstance(config.get(name), Mapping))
    for place in (config, text_config(config), *parts):
        try:
            return Heads(*head_counts(place), _head_dim(place))
        except (KeyError, ValueError):
            continue
    return None


def _head_dim(config: Mapping[str, Any]) -> int | None:
    if config.get("v_head_dim"):  # heads of keys and of values have two sizes
        return None
    sizes = (config.get(name) for name in _HEAD_DIM)
    return next((size for size in sizes if type(size) is int and size > 0), None)


def split(W: Tensor, role: str, count: int) -> Tensor:
    """(count, rows, columns): head h of W^Q, W^K, W^V is row block h, of W^O column block h. Query head i reads the
    key-value head i // (query heads / key-value heads)."""
    if role == "o":
        return W.view(W.shape[0], count, -1).transpose(0, 1)
    return W.view(count, -1, W.shape[1])


def head_metrics(W: Tensor, role: str, count: int) -> list[dict[str, float]]:
    """Frobenius and spectral norm, stable and effective rank of every head, on energies (see `rank_metrics`)."""
    found = []
    for block in split(W, role, count):
        G = gram(block if block.shape[0] <= block.shape[1] else block.T)
        energy = torch.linalg.eigvalsh(G).clamp_min(0)
        total, largest = float(energy.sum()), float(energy[-1])
        p = energy[energy > 0] / max(total, 1e-300)
        found.append(
            {
                "frobenius_norm": total**0.5,
                "spectral_norm": largest**0.5,
                "stable_rank": total / largest if largest else 0.0,
                "effective_rank": float(torch.exp(-(p * p.log()).sum())) if total else 0.0,
            }
        )
    return found
