"""Every model type of the table by itself: which rows are which matrix, proven by what changes when they change.

The context is what attention hands to W^O, or the MLP to W^down. Edits are made to the outputs of modules, row by row
as the plan says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import torch
from kit.every_type import ALIASES, PROVEN, build_type, run
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_FUSED_TARGETS
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.targets import linear
from ailora_tools.targets.architectures import BY_MODEL_TYPE, NAMED_LIKE_EXPERTS
from ailora_tools.targets.built_class import _linear
from ailora_tools.targets.linear import Roles, spelled_out
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.projections import Plan, Target
from ailora_tools.targets.selection import Selection

# Where even a single key does not get all of the attention: sinks take part of it, or blocks are filled up with keys.
MORE_THAN_ONE_KEY = {"gpt_oss", "pegasus_x"}
# Half of what W^O reads comes from a convolution.
HALF_A_CONTEXT = {"convbert"}
# Modules for entities or proteins beside the words, which these inputs have not.
NOT_ALL_CALLED = {"luke", "evolla"}
# What the gate lets through is W^up and one.
UP_AND_ONE = {"minimax_m3_vl_text"}
# In no row themselves: found by the text model inside, or by names.
STRANGERS = ["blip-2", "evolla", "minicpm_ocr", "minicpmv4_7", "minimax", "modernvbert", "omniasr", "ultravbert"]
TYPES = [*PROVEN, *STRANGERS]

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Planned:
    """A model, the plan for its attention, what all-linear stands for, and the plan for that."""

    model: nn.Module
    attention: Plan
    roles: Roles
    every: Plan


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
        return read_by(self.o, self.model, edits, length)


def read_by(target: Target, model: nn.Module, edits: tuple[tuple[Target, Edit], ...], length: int = 6) -> Tensor:
    """(tokens, width) of what a matrix reads, while outputs of modules are edited."""
    given: list[Tensor] = []
    handle = model.get_submodule(target.module).register_forward_pre_hook(
        lambda _, inputs: given.append(inputs[0].detach().clone())
    )
    with edited(model, edits):
        run(model, length)
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
    rows = rows_of(target)

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
def planned(kind: str) -> Planned:
    """From the file that transformers saves."""
    model = build_type(kind)
    with TemporaryDirectory() as folder, patch.object(linear, "linear_of_class", lambda _: _linear(model)):
        model.save_pretrained(folder)
        checkpoint = open_checkpoint(folder)
        roles = spelled_out(checkpoint, ("all-linear",))
        attention = make_plan(checkpoint, Selection(("q", "k", "v", "o")))
        return Planned(model, attention, roles, make_plan(checkpoint, Selection(roles.roles)))


def by_place(plan: Plan) -> dict[tuple[str, int], dict[str, Target]]:
    """The targets of every layer of every stack, by role."""
    found: dict[tuple[str, int], dict[str, Target]] = {}
    for target in plan.targets:
        found.setdefault((target.stack, target.layer), {})[target.role] = target
    return found


@cache
def attentions(kind: str) -> tuple[Attention, ...]:
    """The first attention of every stack."""
    model, found = planned(kind).model, by_place(planned(kind).attention)
    first: dict[str, Attention] = {}
    for (stack, _), roles in sorted(found.items(), key=lambda item: item[0]):
        if len(roles) == 4:
            first.setdefault(stack, Attention(model, **roles))
    assert first
    return tuple(first.values())


def close(one: Tensor, other: Tensor, size: Tensor | None = None) -> bool:
    """In proportion to the entries, the largest of which are those of `size`."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float((other if size is None else size).abs().max()))


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


@pytest.mark.parametrize("kind", TYPES)
def test_all_linear_is_what_peft_means_by_it_but_for_what_is_named(kind: str) -> None:
    model, roles, plan = planned(kind).model, planned(kind).roles, planned(kind).every
    config = LoraConfig(target_modules="all-linear")
    of_peft = set(_maybe_include_all_linear_layers(config, model).target_modules)  # type: ignore[arg-type]
    taken = {target.module for target in plan.targets}
    assert taken | roles.left.keys() == of_peft
    assert not taken & roles.left.keys()
    assert all(any(word in text for text in roles.notices) for word in set(roles.left.values()))


@pytest.mark.parametrize("kind", TYPES)
def test_every_matrix_works_through_its_module_alone(kind: str) -> None:
    """What all of them lose is given back beside the modules, as an adapter does it: the model computes the same."""
    model, plan = planned(kind).model, planned(kind).every
    before, generator = run(model), torch.Generator().manual_seed(3)
    kept = {target.module: weight(model, target).clone() for target in plan.targets}
    called, handles = set(), []
    for target in plan.targets:
        u, v = (torch.randn(side, generator=generator) for side in target.shape)
        piece = torch.outer(u, v) * 0.3 / (len(u) * len(v)) ** 0.5

        def add(
            module: nn.Module, inputs: tuple[Tensor], given: Tensor, target: Target = target, piece=piece
        ) -> Tensor:
            called.add(target.module)
            given = given.clone()
            given[..., rows_of(target)] += inputs[0] @ piece.T
            return given

        lines = weight(model, target)
        lines = lines.T if target.part and target.part.transposed else lines
        lines[rows_of(target)] -= piece
        handles.append(model.get_submodule(target.module).register_forward_hook(add))
    after = run(model)
    for handle in handles:
        handle.remove()
    without = run(model)
    for target in plan.targets:
        weight(model, target).copy_(kept[target.module])
    assert float((after - before).norm()) <= 1e-4 * float(before.norm())
    assert float((without - before).norm()) > 1e-3 * float(before.norm())
    assert called == kept.keys() or kind in NOT_ALL_CALLED


@pytest.mark.parametrize("kind", TYPES)
def test_up_and_gate_are_what_down_reads(kind: str) -> None:
    """Without either there is nothing; with the other sign of W^up the other sign, and of W^gate something else."""
    model = planned(kind).model
    for of in by_place(planned(kind).every).values():
        if "down" in of:
            read = partial(read_by, of["down"], model)
            once = read(())
            assert once.any()
            assert close(read(((of["up"], nothing),)), 0 * once, once) or kind in UP_AND_ONE
        if "gate" in of:
            assert close(read(((of["up"], torch.neg),)), -once) or kind in UP_AND_ONE
            assert close(read(((of["gate"], nothing),)), 0 * once, once)
            assert not close(read(((of["gate"], torch.neg),)), -once)


def test_peft_takes_the_names_of_these_types_for_those_of_experts() -> None:
    bases = {kind: _MODEL_TO_CONVERSION_PATTERN.get(ALIASES.get(kind, kind)) for kind in BY_MODEL_TYPE}
    assert {kind for kind, base in bases.items() if base == "qwen2_moe"} == set(NAMED_LIKE_EXPERTS)
    assert _MOE_FUSED_TARGETS.keys() == {"qwen2_moe", "mixtral"}


def weight(model: nn.Module, target: Target) -> Tensor:
    return model.get_submodule(target.module).weight.data


def rows_of(target: Target) -> Tensor:
    runs = target.part.runs if target.part else ((0, target.shape[0]),)
    return torch.cat([torch.arange(start, stop) for start, stop in runs])
