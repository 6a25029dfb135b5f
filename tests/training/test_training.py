"""What training asks of a folder: biases, what stays frozen, how far a first step moves, learning rates by role."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest
import torch
from kit.adapters import load_start, write_model
from kit.checkpoints import write_checkpoint
from kit.families import build
from kit.real_models import minilm
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from ailora_tools import bitfit, freeze_a, freeze_b, initialize, lr_groups, train_biases
from ailora_tools.errors import OptionError, OutputError, TargetError

LR = 1e-5
Freeze = Callable[[PeftModel, Path], int]


def test_bias_is_what_peft_trains(tmp_path: Path) -> None:
    model, _ = write_model("bert with a head", tmp_path / "source")
    for bias in ("none", "all", "lora_only"):
        initialize(tmp_path / "source", 3, bias=bias, output=tmp_path / bias)
        adapted = load_start(model, tmp_path / bias, tmp_path / "source", is_trainable=True)
        trained = {name for name, value in adapted.named_parameters() if value.requires_grad and "lora_" not in name}
        biases = {name for name, _ in adapted.named_parameters() if name.endswith(".bias")}
        ours = {name for name in biases if ".query." in name or ".value." in name}
        assert trained == {"none": set(), "all": biases, "lora_only": ours}[bias]


@pytest.mark.parametrize(
    ("method", "freeze", "other", "trained"), [("mica", freeze_b, freeze_a, "A"), ("pica", freeze_a, freeze_b, "B")]
)
def test_a_frozen_factor_does_not_train(
    method: str, freeze: Freeze, other: Freeze, trained: str, tmp_path: Path
) -> None:
    model, _ = write_model("llama", tmp_path / "source")
    result = initialize(tmp_path / "source", 3, method=method, output=tmp_path / "out")
    adapted = load_start(model, tmp_path / "out", tmp_path / "source", is_trainable=True)
    assert other(adapted, result.adapter) == 0
    assert freeze(adapted, result.adapter) == len(result.manifest.modules)
    left = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert left and all(f".lora_{trained}." in name for name in left)
    assert freeze.__name__ in (result.folder / "README.md").read_text()


def moved(model: PeftModel, groups: list[dict[str, object]], seed: int) -> dict[str, float]:
    """norm(change of W by A and B) / norm(W), by module, after one step of Adam along random gradients."""
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(seed)
    for _, value in model.named_parameters():
        if value.requires_grad:
            value.grad = torch.randn(value.shape, generator=generator)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    before = {name: layer.get_delta_weight("default").clone() for name, layer in layers.items()}
    optimizer.step()
    with torch.no_grad():
        whole = {name: layer.base_layer.weight + before[name] for name, layer in layers.items()}
        return {
            name: float((layer.get_delta_weight("default") - before[name]).norm() / whole[name].norm())
            for name, layer in layers.items()
        }


def trainable(folder: Path, source: Path) -> PeftModel:
    base = AutoModel.from_pretrained(folder if (folder / "config.json").exists() else source)
    return PeftModel.from_pretrained(base, folder / "ailora_init", is_trainable=True)


def one_group(model: PeftModel) -> list[dict[str, object]]:
    return [{"params": [value for value in model.parameters() if value.requires_grad], "lr": LR}]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 16},
        {"method": "pissa"},
        {"method": "lora"},
        *({"method": name} for name in ("mica", "pica", "olora-tail", "ailora-orthonormal")),
    ],
)
def test_motion_is_what_the_first_step_of_adam_does(options: dict[str, object], tmp_path: Path) -> None:
    """On real weights, where queries run far ahead of values."""
    minilm(tmp_path / "source")
    result = initialize(tmp_path / "source", 8, output=tmp_path / "out", **options)
    adapted = trainable(tmp_path / "out", tmp_path / "source")
    freeze_a(adapted, result.adapter)
    freeze_b(adapted, result.adapter)
    found = moved(adapted, one_group(adapted), 0)
    for record in result.manifest.modules:
        name = next(name for name in found if name.endswith(record.module))
        assert found[name] == pytest.approx(LR * record.motion, rel=0.05)
    by_role = {role: [one.motion**2 for one in result.manifest.modules if one.role == role] for role in "qv"}
    for role, squares in by_role.items():
        assert result.manifest.motion[role] == pytest.approx((sum(squares) / len(squares)) ** 0.5)


def test_orthonormal_starts_move_queries_and_values_alike(tmp_path: Path) -> None:
    """norm(change of W) by one step of Adam, and as the manifest tells it: AILoRA's square roots of singular values
    make queries run twenty times as far."""
    weights = load_file(minilm(tmp_path / "source") / "model.safetensors")
    ratio = {}
    for method in ("ailora", "ailora-orthonormal", "rlpo", "rlmo", "pica"):
        result = initialize(tmp_path / "source", 8, method=method, output=tmp_path / method)
        adapted = trainable(tmp_path / method, tmp_path / "source")
        freeze_a(adapted, result.adapter)
        found = moved(adapted, one_group(adapted), 0)
        step, told = ({role: [] for role in "qv"} for _ in range(2))
        for one in result.manifest.modules:
            size = float(weights[one.tensor].norm())
            step[one.role].append(size * next(found[name] for name in found if name.endswith(one.module)))
            told[one.role].append(size * one.motion)
        ratio[method] = [mean(each["q"]) / mean(each["v"]) for each in (step, told)]
    assert ratio.pop("ailora") == pytest.approx([20.4, 20.4], rel=0.02)
    assert [one for pair in ratio.values() for one in pair] == pytest.approx([1.0] * 8, abs=0.005)


@pytest.mark.parametrize("dora", [False, True])
def test_lr_groups_make_queries_and_values_move_alike(dora: bool, tmp_path: Path) -> None:
    """By A and B: the magnitudes of DoRA keep the learning rate that was asked for."""
    minilm(tmp_path / "source")
    result = initialize(tmp_path / "source", 8, dora=dora, output=tmp_path / "out")
    means: dict[bool, dict[str, float]] = {}
    for balanced in (True, False):
        adapted = trainable(tmp_path / "out", tmp_path / "source")
        groups = lr_groups(adapted, result.adapter, LR) if balanced else one_group(adapted)
        trained = [name for name, value in adapted.named_parameters() if value.requires_grad]
        assert sum(len(group["params"]) for group in groups) == len(trained)
        plain = {id(value) for group in groups if group["lr"] == LR for value in group["params"]}
        for name, value in adapted.named_parameters():
            if "magnitude" in name:
                assert id(value) in plain
        found = moved(adapted, groups, 1)
        roles = {role: [value for name, value in found.items() if name.endswith(role)] for role in ("query", "value")}
        means[balanced] = {role: sum(values) / len(values) for role, values in roles.items()}
    assert means[True]["query"] == pytest.approx(means[True]["value"], rel=0.05)
    assert means[False]["query"] > 10 * means[False]["value"]
    document = json.loads((result.folder / "lr_groups.json").read_text())
    assert document["roles"]["v"]["scale"] > 1 > document["roles"]["q"]["scale"] and not document["shared"]


def test_one_module_of_several_roles_has_one_learning_rate(tmp_path: Path) -> None:
    """Told in the card, the file and a warning, since nothing can make its parts move alike."""
    build("gpt2").save_pretrained(tmp_path / "source")
    result = initialize(tmp_path / "source", 3, output=tmp_path / "out")
    base = type(build("gpt2")).from_pretrained(tmp_path / "out")
    adapted = PeftModel.from_pretrained(base, result.adapter, is_trainable=True)
    with pytest.warns(UserWarning, match="several projections"):
        groups = lr_groups(adapted, result.adapter, LR)
    assert all(group["lr"] == pytest.approx(LR) for group in groups)
    assert json.loads((tmp_path / "out" / "lr_groups.json").read_text())["shared"] == sorted(
        {record.module for record in result.manifest.modules}
    )
    assert "nothing can equalise that" in (tmp_path / "out" / "README.md").read_text()


def test_a_b_that_is_frozen_in_part_is_refused(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path / "source")
    with pytest.raises(OptionError, match="only a part is to be frozen"):
        initialize(tmp_path / "source", 3, method="q=minor-left,v=principal", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bitfit_trains_the_biases_and_nothing_else(tmp_path: Path) -> None:
    model, _ = write_model("bert with a head", tmp_path / "source")
    found = bitfit(tmp_path / "source", tmp_path / "out")
    expected = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert set(found.biases) == expected and found.total == sum(value.numel() for value in model.parameters())
    trained = train_biases(model, tmp_path / "out")
    assert {name for name, value in model.named_parameters() if value.requires_grad} == expected
    assert sum(value.numel() for value in trained) == found.count
    with pytest.raises(OutputError, match="already exists"):
        bitfit(tmp_path / "source", tmp_path / "out")
    with pytest.raises(TargetError, match="none of its"):
        train_biases(nn.Linear(3, 3, bias=False), tmp_path / "out")


class Headed(nn.Module):
    """A base model below a name of its own, with a new head that is called like a part of it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.encoder_of_mine = body
        self.dense = nn.Linear(8, 2)


def test_bitfit_finds_the_biases_under_another_prefix_and_leaves_a_new_head_alone(tmp_path: Path) -> None:
    model = build("bert with a head")
    model.save_pretrained(tmp_path / "source")
    bitfit(tmp_path / "source", tmp_path / "out")
    body = model.base_model
    with pytest.warns(UserWarning, match="3 of 20 biases are not in the model: cls"):  # of the checkpoint's own head
        trained = train_biases(Headed(body), tmp_path / "out")
    assert {id(value) for value in trained} == {id(v) for n, v in body.named_parameters() if n.endswith(".bias")}


def test_bitfit_reads_old_names_and_biases_that_belong_to_no_module(tmp_path: Path) -> None:
    """LayerNorm's beta of old checkpoints; q_bias and v_bias of DeBERTa, its only biases of queries and values."""
    model = build("bert body")
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in model.state_dict().items()}
    old["embeddings.position_ids"] = torch.arange(7)
    write_checkpoint(tmp_path / "old", old, model_type="bert")
    found = bitfit(tmp_path / "old", tmp_path / "biases")
    expected = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert len(found.biases) == len(expected) and any(name.endswith(".beta") for name in found.biases)
    assert found.total == sum(value.numel() for value in model.parameters()), "positions are no parameters"
    train_biases(model, tmp_path / "biases")
    assert {name for name, value in model.named_parameters() if value.requires_grad} == expected
    build("deberta").save_pretrained(tmp_path / "deberta")
    assert any(name.endswith("q_bias") for name in bitfit(tmp_path / "deberta", tmp_path / "more").biases)


def test_bitfit_says_that_a_model_has_no_biases(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(OptionError, match="nothing to train"):
        bitfit(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="has no adapter"):
        initialize(tmp_path / "model", 4, method="bitfit")
