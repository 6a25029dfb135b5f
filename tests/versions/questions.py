"""What `init` asks of the class, for every type of the table: written down once, to be put to any transformers.

Run by `table.py` under the transformers that the tests run with: `python questions.py OUTPUT.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from kit.every_type import PROVEN, both_classes, config_of
from torch import nn
from versions.answers import without_timm

from ailora_tools.checkpoint.index import Checkpoint, open_checkpoint
from ailora_tools.targets import linear
from ailora_tools.targets.architectures import BY_MODEL_TYPE
from ailora_tools.targets.built_class import _linear
from ailora_tools.targets.linear import spelled_out
from ailora_tools.targets.plan import make_plan, target_modules
from ailora_tools.targets.selection import Selection

MAJORS = (4, 5)
# Beside the defaults: layers without values of their own, and layers without attention.
CHANGED: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("gemma3n_text", {"num_kv_shared_layers": 0}),
    ("gemma4_text", {"attention_k_eq_v": True}),
    ("gemma4_text", {"attention_k_eq_v": True, "num_kv_shared_layers": 0}),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}),
)


def cases() -> list[dict[str, Any]]:
    """The body and the class with a head of every type, and the questions about them; "parts" are types inside that
    the table does not have, and that hold where the whole does."""
    defaults = [(kind, {}) for kind in PROVEN]
    return [_case(kind, changes, of) for kind, changes in (*defaults, *CHANGED) for of in both_classes(kind)]


def _case(model_type: str, changes: Mapping[str, Any], kind: type[nn.Module]) -> dict[str, Any]:
    config = config_of(model_type)
    for field, value in changes.items():
        setattr(config, field, value)
    torch.manual_seed(0)
    with without_timm(), TemporaryDirectory() as folder:
        model = kind(config)
        model.save_pretrained(folder)  # type: ignore[operator]
        path = Path(folder, "config.json")
        described = {**json.loads(path.read_text()), "model_type": model_type}
        path.write_text(json.dumps(described))
        checkpoint = open_checkpoint(folder)
        with patch.object(linear, "linear_of_class", lambda _: _linear(model)):
            every = spelled_out(checkpoint, ("all-linear",)).roles
        asked = {str(major): questions(checkpoint, every, major) for major in MAJORS}
        parts = sorted(make_plan(checkpoint).types - BY_MODEL_TYPE.keys())
        return {"type": model_type, "parts": parts, "config": described, "roles": every, "questions": asked}


def questions(checkpoint: Checkpoint, every: tuple[str, ...], major: int) -> list[dict[str, Any]]:
    """For W^Q and W^V, and for every linear layer: what the plan takes to be there, and the names to hit it by."""
    found = []
    for roles in (Selection().roles, every):
        plan = make_plan(checkpoint, Selection(roles), transformers_major=major)
        if plan.counted:
            modules = {carrier.module: carrier.sides for carrier in plan.carriers}
            turned = [carrier.module for carrier in plan.carriers if carrier.transposed]
            targets = target_modules(plan, checkpoint)
            found.append({"modules": modules, "targets": targets, "turned": turned, "held": []})
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(cases()))
