"""What the classes of one transformers answer: `python answers.py QUESTIONS.json ANSWERS.json`, with it on PYTHONPATH.

Imports nothing of the tests, which are written for the transformers that they run with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import nn

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import AiloraError
from ailora_tools.targets.built_class import _built, _compared, _own_config, harmless
from ailora_tools.targets.module_names import installed_transformers_major
from ailora_tools.targets.plan import make_plan, target_modules
from ailora_tools.targets.selection import Selection


def differences(case: Mapping[str, Any]) -> list[str]:
    """In what the class of this transformers is not as planned; for the file that a later one has saved, and for the
    one that it saves itself."""
    with without_timm():
        model, reason = _built(case["config"], lambda: None)
        if model is None:
            return [reason]
        major = str(installed_transformers_major())
        found = [text for question in case["questions"][major] for text in _differs(model, question)]
        try:
            return found + [f"saved here: {text}" for text in _saved_here(model, case)]
        except Exception as error:  # what the old class itself raises
            return [*found, f"saved here: {type(error).__name__}: {str(error)[:300]}"]


def _differs(model: nn.Module, question: Mapping[str, Any]) -> Iterator[str]:
    answer = _compared(model, question)
    for what in ("missing", "extra"):
        if answer[what]:
            yield f"{what}: {', '.join(answer[what][:3])}"
    turned = set(question["turned"]) - set(answer["missing"])
    if turned != set(answer["turned"]):
        yield f"stored the other way round: {', '.join(sorted(turned ^ set(answer['turned']))[:3])}"


def _saved_here(built: nn.Module, case: Mapping[str, Any]) -> list[str]:
    """The same for what this transformers saves, as far as config.json tells what is built; else the class is asked."""
    torch.manual_seed(0)
    found: list[str] = []
    with TemporaryDirectory() as folder:
        model = type(built)(_own_config(type(built).config_class, harmless(case["config"])))
        model.save_pretrained(folder)
        path = Path(folder, "config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": case["type"]}))
        checkpoint = open_checkpoint(folder)
        for roles in (Selection().roles, tuple(case["roles"])):
            try:
                plan = make_plan(checkpoint, Selection(roles))
            except AiloraError:
                continue  # such a file is refused, whichever transformers is installed
            if plan.counted:
                modules = {carrier.module: carrier.sides for carrier in plan.carriers}
                turned = [carrier.module for carrier in plan.carriers if carrier.transposed]
                targets = target_modules(plan, checkpoint)
                found += _differs(model, {"modules": modules, "targets": targets, "turned": turned, "held": []})
    return found


@contextmanager
def without_timm() -> Iterator[None]:
    """Towers of timm, which the tests do without, are left out."""
    whole = transformers.AutoModel.from_config

    def from_config(config: Any, *_: object, **options: object) -> nn.Module:
        return nn.Identity() if config.model_type == "gemma3n_vision" else whole(config, **options)

    with patch.object(transformers.AutoModel, "from_config", from_config):
        yield


def answers(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Type -> class -> in what it differs."""
    found: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        name, differs = case["config"]["architectures"][0], differences(case)
        for kind in (case["type"], *case["parts"]):
            found.setdefault(kind, {}).setdefault(name, []).extend(differs)
    return found


if __name__ == "__main__":
    held = answers(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps({"version": transformers.__version__, "answers": held}, indent=1))
