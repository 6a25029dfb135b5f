"""Weight decay where A and B hold a part of the original."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from kit.adapters import load_start
from kit.families import build
from peft import PeftModel
from torch import Tensor

from ailora_tools import attach, decay_to_start, initialize, lr_groups
from ailora_tools.errors import OptionError, TargetError


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("decay")
    model = build("bert with a head")
    model.save_pretrained(root / "source")
    for name, options in {
        "plain": {}, "dora": {"dora": True}, "biases": {"bias": "all"}, "lora": {"method": "lora"},
        "mixed": {"method": "q=principal,v=kaiming"}, "two": {"no_base": True},
    }.items():  # fmt: skip
        initialize(root / "source", 3, output=root / name, **options)
    return SimpleNamespace(root=root, model=model)


def loaded(at: SimpleNamespace, name: str) -> PeftModel:
    model = load_start(at.model, at.root / name, at.root / "source", is_trainable=True)
    if name == "two":
        attach(model, at.root / name)
    return model


def values(model: PeftModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def decayed(at: SimpleNamespace, folder: str, steps: int = 20) -> set[str]:
    """Which parameters AdamW moves where no gradient does."""
    model = loaded(at, folder)
    before = values(model)
    optimizer = torch.optim.AdamW(lr_groups(model, at.root / folder / "ailora_init", lr=0.1), weight_decay=0.1)
    for _ in range(steps):
        for value in model.parameters():
            value.grad = torch.zeros_like(value) if value.requires_grad else None
        optimizer.step()
    return {name for name, value in values(model).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("folder", ["plain", "dora", "two"])
def test_what_holds_a_part_of_the_original_is_not_decayed(folder: str, at: SimpleNamespace) -> None:
    assert not decayed(at, folder)


def test_what_holds_none_is_decayed_as_the_optimiser_says(at: SimpleNamespace) -> None:
    assert all(name.endswith("bias") for name in decayed(at, "biases")) and decayed(at, "biases")
    assert all(".lora_A." in name for name in decayed(at, "lora")) and decayed(at, "lora"), "B is zero"
    assert all(".value.lora_A." in name for name in decayed(at, "mixed")) and decayed(at, "mixed")


def test_decay_to_start_is_adamw_s_decay_of_the_difference(at: SimpleNamespace) -> None:
    """Against torch's own AdamW on p - p_start, with the same gradients."""
    model, adapter = loaded(at, "plain"), at.root / "plain" / "ailora_init"
    start = values(model)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 0.03, "weight_decay": 0.0}])
    handle = decay_to_start(optimizer, model, adapter, weight_decay=0.5)
    differences = {name: torch.zeros_like(value, requires_grad=True) for name, value in start.items()}
    oracle = torch.optim.AdamW(differences.values(), lr=0.03, weight_decay=0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for name, value in model.named_parameters():
            if name in start:
                value.grad = torch.randn(value.shape, generator=generator)
                differences[name].grad = value.grad.clone()
        optimizer.step()
        oracle.step()
    for name, value in values(model).items():
        assert torch.allclose(value, start[name] + differences[name], atol=1e-5)
    handle.remove()
    before = values(model)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    torch.optim.SGD(optimizer.param_groups, lr=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())


def test_the_start_stays_and_a_resumed_adapter_comes_back(at: SimpleNamespace) -> None:
    model, adapter = loaded(at, "plain"), at.root / "plain" / "ailora_init"
    start = values(model)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer = torch.optim.SGD(lr_groups(model, adapter, lr=0.1))
    decay_to_start(optimizer, model, adapter, weight_decay=1.0)
    optimizer.step()
    assert all(torch.equal(value, start[name]) for name, value in values(model).items())
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in start:
                value.mul_(2)
    for _ in range(200):
        optimizer.step()
    assert all(torch.allclose(value, start[name], atol=1e-3) for name, value in values(model).items())


def test_what_would_decay_twice_or_not_at_all_is_refused(at: SimpleNamespace) -> None:
    model, adapter = loaded(at, "plain"), at.root / "plain" / "ailora_init"
    both = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    with pytest.raises(OptionError, match="decays towards zero what is to decay to the start"):
        decay_to_start(both, model, adapter, weight_decay=0.1)
    other = torch.optim.AdamW(loaded(at, "plain").parameters(), weight_decay=0.0)
    with pytest.raises(TargetError, match=r"not in the optimiser: bert\.encoder"):
        decay_to_start(other, model, adapter, weight_decay=0.1)
    with pytest.raises(OptionError, match="expected 0 or more"):
        decay_to_start(both, model, adapter, weight_decay=float("nan"))
