"""The numbers of what trains beside the factors: copied from the source, or made as transformers makes a new head."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checkpoint.files import Files
from ..checkpoint.stream import load_matrix
from ..linalg.finite import require_finite
from ..targets.extras import NORMAL, ONES, Extra
from .decompose import seeded


def values(extra: Extra, files: Files, seed: int) -> Tensor:
    """The tensor as it is stored, of the shape and dtype that `extra` says; NumericalError if the source's is not
    finite.

    A new one is normal with mean 0 and the deviation that the config states (`PreTrainedModel._init_weights`: 0.02
    where it states none), zero for biases, one for norms; it depends on the seed and its path alone.
    """
    if extra.stored is not None:
        held = load_matrix(files, extra.stored)
        held = held[list(extra.rows)] if extra.rows else held
        require_finite(held, extra.stored.name)
        return held
    if extra.start == NORMAL:
        return extra.std * torch.randn(extra.shape, generator=seeded(f"{seed}/{extra.path}/new"))
    return torch.ones(extra.shape) if extra.start == ONES else torch.zeros(extra.shape)
