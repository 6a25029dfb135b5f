"""What a device is asked for: large portions, few of them, and one eigenproblem at a time. The CPU plays the device."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from kit.waiting import SAFETY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ailora_tools.linalg import portions
from ailora_tools.linalg.band import Band
from ailora_tools.linalg.components import gram, product
from ailora_tools.linalg.counter import random_bits
from ailora_tools.linalg.grid import on_grid
from ailora_tools.linalg.recombine import recombination_error
from ailora_tools.linalg.scale import norm, row_norms
from ailora_tools.linalg.spectrum import spectrum
from ailora_tools.metrics.elements import chunks

THERE = torch.device("cpu")


class Asked(TorchDispatchMode):
    """How many operations were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, asked: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return asked(*args, **(kwargs or {}))


def thin(side: int, rank: int = 4) -> Tensor:
    return torch.ones(side, rank, dtype=torch.float64)


WORK: dict[str, Callable[[Tensor], Any]] = {
    "product": lambda W: product(W, thin(W.shape[1])),
    "product of the transpose": lambda W: product(W.T, thin(W.shape[0])),
    "gram": gram,
    "norm": norm,
    "row norms": row_norms,
    "recombination": lambda W: recombination_error(W, thin(W.shape[1]).T, thin(W.shape[0]), 1.0, W),
    "random bits": lambda W: random_bits(7, 3, W.numel(), W.device),
    "grid": lambda W: on_grid(W.bfloat16(), "nf4"),
    "chunks": lambda W: torch.cat([part for (part,) in chunks(W)]),
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "accelerated", lambda there: there == THERE)


@pytest.mark.parametrize("name", WORK)
def test_what_a_device_is_asked_for_does_not_grow_with_the_matrix(name: str, device: None) -> None:
    counts = []
    for side in (256, 1536):
        W = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
        with Asked() as asked:
            WORK[name](W)
        counts.append(asked.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", WORK)
def test_portions_change_no_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(1100, 1000, generator=torch.Generator().manual_seed(0)).mT.contiguous()
    here = WORK[name](W)
    monkeypatch.setattr(portions, "accelerated", lambda there: True)
    there = WORK[name](W)
    torch.testing.assert_close(torch.as_tensor(there), torch.as_tensor(here), rtol=1e-12, atol=1e-12)


def test_a_band_is_the_same_matrix_in_any_strips(device: None) -> None:
    W = torch.randn(1300, 1300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    G = W @ W.T
    band = Band.of(G.clone())
    X = torch.eye(1300, 5, dtype=torch.float64)
    assert torch.allclose(band.expanded(band.times(X.clone())) - G @ band.expanded(X.clone()), X * 0, atol=1e-8)


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_device_has_one_eigenproblem_at_a_time(accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, lock, solve = [0], [0], threading.Lock(), torch.linalg.eigvalsh

    def watched(G: Tensor) -> Tensor:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        deadline = time.monotonic() + (0.2 if accelerated else SAFETY)
        while most[0] < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        values = solve(G)
        with lock:
            inside[0] -= 1
        return values

    monkeypatch.setattr(torch.linalg, "eigvalsh", watched)
    monkeypatch.setattr(portions, "accelerated", lambda there: accelerated)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(spectrum, [torch.eye(3)] * 2))
    assert most[0] == (1 if accelerated else 2) and all(bool((one.S == 1).all()) for one in found)
