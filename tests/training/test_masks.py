"""mask_fused_gradients under everything that puts other tensors into the place of the parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit.adapters import ALL
from kit.families import build
from peft import PeftModel
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ailora_tools import decay_to_start, initialize, lr_groups, mask_fused_gradients
from ailora_tools.errors import TargetError
from ailora_tools.surgery.blocks import block_mask


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("masks")
    build("gpt2").save_pretrained(root / "source")
    made = initialize(root / "source", 3, output=root / "out")
    records = made.manifest.modules
    masks = {one.module: block_mask([other for other in records if other.module == one.module]) for one in records}
    return SimpleNamespace(folder=made.folder, adapter=made.adapter, masks=masks)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[None]:
    """One process, which shards as many do."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def loaded(at: SimpleNamespace) -> PeftModel:
    base = type(build("gpt2")).from_pretrained(at.folder)
    return PeftModel.from_pretrained(base, at.adapter, is_trainable=True).train()


def fsdp2(model: PeftModel) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for block in model.base_model.model.transformer.h:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp2_each_layer(model: PeftModel) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for layer in [one for one in model.modules() if hasattr(one, "lora_B")]:
        for held in (*layer.lora_A.values(), *layer.lora_B.values()):
            fully_shard(held, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def checkpointed(model: PeftModel) -> nn.Module:
    model.enable_input_require_grads()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    return fsdp2(model)


WRAPS = {
    "nothing": lambda model: model,
    "DDP": DistributedDataParallel,
    "FSDP": lambda model: FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu")),
    "FSDP2": fsdp2,
    "FSDP2, every part by itself": fsdp2_each_layer,
    "FSDP2, gradient checkpointing": checkpointed,
    "a copy": copy.deepcopy,
}


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Every B."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model):
            return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_B" in name}
    found = {name: value.detach() for name, value in model.named_parameters() if "lora_B" in name}
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in found.items()}


def outside(model: nn.Module, at: SimpleNamespace) -> float:
    """The largest entry of any B outside the blocks."""
    found = whole(model)
    assert len(found) == len(at.masks)
    return max(
        float((B * (1 - next(mask for module, mask in at.masks.items() if module in name))).abs().max())
        for name, B in found.items()
    )


def train(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(2):
        model(**ALL["gpt2"].inputs()).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_training_stays_inside_the_blocks(wrap: str, when: str, at: SimpleNamespace, world: None) -> None:
    model = loaded(at)
    start = {name: value.clone() for name, value in whole(model).items()}
    if when == "before":
        assert len(mask_fused_gradients(model, at.adapter)) == len(at.masks)
    model = WRAPS[wrap](model)
    if when == "after":
        assert len(mask_fused_gradients(model, at.adapter)) == len(at.masks)
    train(model)
    assert outside(model, at) == 0
    moved = [(B - before).abs().max() for B, before in zip(whole(model).values(), start.values(), strict=True)]
    assert min(moved) > 0


@pytest.mark.parametrize("wrap", ["nothing", "FSDP2"])
def test_without_the_mask_or_after_its_removal_all_of_b_trains(wrap: str, at: SimpleNamespace, world: None) -> None:
    model = loaded(at)
    for mask in mask_fused_gradients(model, at.adapter):
        mask.remove()
    model = WRAPS[wrap](model)
    train(model)
    assert outside(model, at) > 0


def test_a_gradient_of_another_shape_is_an_error(at: SimpleNamespace) -> None:
    model = loaded(at)
    mask = mask_fused_gradients(model, at.adapter)[0]
    with pytest.raises(TargetError, match="gradient has shape"):
        mask._masked(torch.ones(3))


def test_decay_to_start_and_groups_under_fsdp2(at: SimpleNamespace, world: None) -> None:
    model = fsdp2(loaded(at))
    start = {name: value.clone() for name, value in whole(model).items()}
    with pytest.warns(UserWarning, match="several projections"):
        optimizer = torch.optim.SGD(lr_groups(model, at.adapter, lr=0.1))
    decay_to_start(optimizer, model, at.adapter, weight_decay=2.0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.add_(1.0)
                value.grad = torch.zeros_like(value)
    optimizer.step()
    for name, B in whole(model).items():
        assert torch.allclose(B, start[name] + 0.8, atol=1e-6)
