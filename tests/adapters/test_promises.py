"""What a config says is targeted is what PEFT takes, module by module: nothing that is whole is called incomplete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import ALL, near
from kit.families import build, output
from kit.merges import edit
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ailora_tools import merge
from ailora_tools.errors import TargetError

T5 = "t5, heads narrower than the model"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a layer of T5, by the name of its list": (T5, {"layers_to_transform": [1], "layers_pattern": "block"}),
    "a layer of T5": (T5, {"layers_to_transform": 0}),
    "no layer is every layer": ("llama", {"layers_to_transform": []}),
    "one layer by its list": ("llama", {"layers_to_transform": [1], "layers_pattern": ["layers"]}),
    "one by its whole name, whatever the layers": (
        "llama",
        {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"], "layers_to_transform": [1]},
    ),
    "a target that is saved as a whole": (
        "llama",
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "lm_head"]},
    ),
    "a target in a module that is saved as a whole": (
        "llama",
        {"modules_to_save": ["layers.1.mlp"], "target_modules": ["q_proj", "up_proj"]},
    ),
}


def written(case: str, folder: Path) -> tuple[str, torch.Tensor]:
    """A model and its adapter in `folder`: the family, and what the two put out in PEFT."""
    name, config = CASES[case]
    build(name).save_pretrained(folder / "model")
    base: Any = type(build(name)).from_pretrained(folder / "model")  # type: ignore[attr-defined]
    torch.manual_seed(1)
    settings = {"target_modules": ["q", "v"] if name == T5 else ["q_proj", "v_proj"], **config}
    model = get_peft_model(base.eval(), LoraConfig(r=2, init_lora_weights=False, **settings)).eval()
    model.save_pretrained(folder / "trained")
    return name, output(model, ALL[name].inputs())


@pytest.mark.parametrize("case", CASES)
def test_what_peft_leaves_out_is_not_missed(case: str, tmp_path: Path) -> None:
    name, expected = written(case, tmp_path)
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    merged = type(build(name)).from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    assert near(output(merged, ALL[name].inputs()), expected, 1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if "saved" not in case])
def test_what_peft_takes_is_missed(case: str, tmp_path: Path) -> None:
    written(case, tmp_path)
    weights = tmp_path / "trained" / "adapter_model.safetensors"
    held = load_file(weights)
    lost = next(
        key.partition(".lora_")[0] for key in sorted(held) if key.partition(".lora_")[0].endswith(("v", "v_proj"))
    )
    save_file({key: value for key, value in held.items() if not key.startswith(f"{lost}.lora_")}, weights)
    module = lost.removeprefix("base_model.model.")
    with pytest.raises(TargetError, match=f"hit 1 modules without tensors, such as {module}"):
        merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_an_expression_that_cannot_be_followed_is_refused_by_its_field(field: str, tmp_path: Path) -> None:
    written("no layer is every layer", tmp_path)
    edit(tmp_path / "trained" / "adapter_config.json", {field: r"^model(?=\.).*\.(q_proj|v_proj)$"})
    with pytest.raises(
        TargetError, match=rf"adapter_config\.json: {field}: the expression .* cannot be matched"
    ) as told:
        merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    assert told.value.hint.startswith(f"Write {field} as a list of module names")
