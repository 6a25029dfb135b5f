"""Every model type of the table by itself: which rows are W^Q and W^V, proven by what changes when they change.

The context is what attention hands to W^O. Edits are made to the outputs of modules, row by row as the plan says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
from kit.every_type import PROVEN, build_type, run
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.projections import Target
from ailora_tools.targets.selection import Selection

# Where even a single key does not get all of the attention: sinks take part of it, or blocks are filled up with keys.
MORE_THAN_ONE_KEY = {"gpt_oss", "pegasus_x"}
# Half of what W^O reads comes from a convolution.
HALF_A_CONTEXT = {"convbert"}
# In no row themselves: found by the text model inside, or by names.
STRANGERS = ["blip-2", "evolla", "minicpm_ocr", "minicpmv4_7", "minimax", "modernvbert", "omniasr", "ultravbert"]
TYPES = [*PROVEN, *STRANGERS]

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """One attention of a model, the first of its stack."""

    model: nn.Module
    q: Target
    k: Target
    v: Target
    o: Target

    def keys(self, length: int) -> int:
        """How many tokens the keys are of."""
        found: list[int] = []

        def count(rows: Tensor) -> Tensor:
            found.append(rows[..., 0].numel())
            return rows

        with edited(self.model, ((self.k, count),)):
            run(self.model, length)
        return found[0]

    def carried(self) -> Tensor:
        """The columns of the context that W^V fills; in most models all."""
        return (self.context() - self.context((self.v, nothing)) != 0).any(0)

    def context(self, *edits: tuple[Target, Edit], length: int = 6) -> Tensor:
        """(tokens, width) of what W^O reads, while outputs of modules are edited."""
        given: list[Tensor] = []
        handle = self.model.get_submodule(self.o.module).register_forward_pre_hook(
            lambda _, inputs: given.append(inputs[0].detach().clone())
        )
        with edited(self.model, edits):
            run(self.model, length)
        handle.remove()
        return given[0].reshape(-1, given[0].shape[-1]).double()


@contextmanager
def edited(model: nn.Module, edits: tuple[tuple[Target, Edit], ...]) -> Iterator[None]:
    handles = [_edit(model.get_submodule(target.module), target, edit) for target, edit in edits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _edit(module: nn.Module, target: Target, edit: Edit) -> RemovableHandle:
    runs = target.part.runs if target.part else ((0, target.shape[0]),)
    rows = torch.cat([torch.arange(start, stop) for start, stop in runs])

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., rows] = edit(output[..., rows])
        return output

    return module.register_forward_hook(hook)


def nothing(rows: Tensor) -> Tensor:
    return torch.zeros_like(rows)


def noise(rows: Tensor) -> Tensor:
    return rows + rows.std() * torch.randn(rows.shape, generator=torch.Generator().manual_seed(7))


def noise_at_the_end(rows: Tensor) -> Tensor:
    return torch.cat([rows[..., :-1, :], noise(rows[..., -1:, :])], -2)


@cache
def attentions(kind: str) -> tuple[Attention, ...]:
    """The first attention of every stack, planned from the file that transformers saves."""
    model = build_type(kind)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        plan = make_plan(open_checkpoint(folder), Selection(("q", "k", "v", "o")))
    found: dict[tuple[str, int], dict[str, Target]] = {}
    for target in plan.targets:
        found.setdefault((target.stack, target.layer), {})[target.role] = target
    first: dict[str, Attention] = {}
    for (stack, _), roles in sorted(found.items(), key=lambda item: item[0]):
        if len(roles) == 4:
            first.setdefault(stack, Attention(model, **roles))
    assert first
    return tuple(first.values())


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("kind", TYPES)
def test_w_v_carries_all_that_attention_gives_and_no_more(kind: str) -> None:
    """Without it there is nothing, and thrice of it gives thrice (or, behind a norm, the same): no row is missing, and
    no key, query or gate among them."""
    for attention in attentions(kind):
        filled = attention.carried()
        assert filled.all() if kind not in HALF_A_CONTEXT else 2 * int(filled.sum()) == len(filled)
        assert not attention.context((attention.v, nothing))[:, filled].any()
        once = attention.context()[:, filled]
        thrice = attention.context((attention.v, lambda rows: 3 * rows))[:, filled]
        assert close(thrice, 3 * once) or close(thrice, once)


@pytest.mark.parametrize("kind", TYPES)
def test_w_q_asks_for_one_token_alone(kind: str) -> None:
    """What changes at the last token changes nothing that others read, as a key or a value would."""
    for attention in attentions(kind):
        before, after = attention.context(), attention.context((attention.q, noise_at_the_end))
        changed = (after - before).abs().amax(1) > 1e-6 * float(before.abs().max())
        assert changed.nonzero().flatten().tolist() == [len(before) - 1]


@pytest.mark.parametrize("kind", TYPES)
def test_without_w_q_no_key_matters(kind: str) -> None:
    """All of the queries are in it: nothing is left for the keys to answer to."""
    for attention in attentions(kind):
        without = attention.context((attention.q, nothing))
        assert close(attention.context((attention.q, nothing), (attention.k, noise)), without)
        assert not close(attention.context((attention.k, noise)), attention.context())


@pytest.mark.parametrize("kind", TYPES)
def test_over_one_key_w_q_does_nothing(kind: str) -> None:
    """A gate among its rows would."""
    for attention in attentions(kind):
        if attention.keys(length=1) == 1 and kind not in MORE_THAN_ONE_KEY:  # pictures and sound have more
            filled = attention.carried()
            alone = attention.context(length=1)[:, filled]
            assert close(attention.context((attention.q, noise), length=1)[:, filled], alone)
            assert not close(attention.context((attention.v, noise), length=1)[:, filled], alone)
