"""What the class builds is what is planned: the table is the snapshot of the names of modules, type by type.

Every class is built tiny and saved; then tensors that no class loads are put into its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kit.families import classes_of, shrunken
from kit.surplus import add, further_layers, prediction_layers
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.targets.architectures import BY_MODEL_TYPE
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.projections import Plan
from ailora_tools.targets.selection import Selection

# Code of the model, and a library of its own (test_vision.py).
REMOTE = {name for name, row in BY_MODEL_TYPE.items() if any(not layout.proven for layout in row.layouts.values())}
REMOTE |= {"timm"}
UNBUILT = {"layoutlmv2", "gemma3n"}  # need libraries that the tests do without; the latter's text tower is below
# Types without an auto class, or whose body is named like a part.
CLASSES = {
    "siglip_text_model": "SiglipTextModel",
    "blip_vision_model": "BlipVisionModel",
    "blip_2_vision_model": "Blip2VisionModel",
    "pop2piano": "Pop2PianoForConditionalGeneration",
    "speech_to_text": "Speech2TextForConditionalGeneration",
}
TYPES = sorted(BY_MODEL_TYPE.keys() - REMOTE - UNBUILT)
ROLES = ("q", "k", "v", "o")


def saved(model_type: str, folder: Path) -> nn.Module:
    """The class that most checkpoints of the type name: with a head where there is one."""
    torch.manual_seed(0)
    name = CLASSES.get(model_type) or classes_of(model_type)[:2][-1]
    model = getattr(transformers, name)(shrunken(model_type))
    model.save_pretrained(folder)
    return model


def planned(folder: Path, **selection: Any) -> Plan:
    return make_plan(open_checkpoint(folder), Selection(**selection))


def modules(plan: Plan) -> set[str]:
    return {target.module for target in plan.targets}


def linear(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


@pytest.mark.parametrize("model_type", TYPES)
def test_what_no_class_loads_is_in_no_plan_and_told(model_type: str, tmp_path: Path) -> None:
    """A layer behind the last one and a layer under `mtp.` change nothing but the notices."""
    model = saved(model_type, tmp_path)
    before = planned(tmp_path)
    gone = sorted(modules(before) - linear(model))
    assert not gone, (
        f"transformers {transformers.__version__}: {type(model).__name__} ({model_type}) has no modules {gone}; "
        f"its own are {sorted(linear(model))}: the row of the table needs other names"
    )
    tensors = load_file(tmp_path / "model.safetensors")
    further, predicting = further_layers(tensors, before), prediction_layers(tensors, before)
    add(tmp_path, {**further, **predicting})
    after = planned(tmp_path)
    assert after.counted, f"{model_type}: config.json does not count its layers by {BY_MODEL_TYPE[model_type].slots}"
    assert modules(after) == modules(before)
    assert after.unbuilt and after.unbuilt <= further.keys()
    assert any("lie beyond the" in text for text in after.notices)
    assert any("mtp.layers.0" in text for text in after.notices)
