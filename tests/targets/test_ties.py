"""Which parameters share a tensor, held against the classes of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf
from kit.families import classes_of
from kit.memory_files import MemoryFiles

from ailora_tools.checkpoint.header import build_header
from ailora_tools.checkpoint.index import Checkpoint
from ailora_tools.targets.architectures import BY_MODEL_TYPE
from ailora_tools.targets.ties import tied_parameters, untied

_APART = {"luke", "udop"}  # they tie more than this, and are refused


def checkpoint(model_type: str, kind: str, names: list[str]) -> Checkpoint:
    _, header = build_header([(name, "F32", (6, 4)) for name in names], {}, "model.safetensors")
    return Checkpoint(
        MemoryFiles({}), {"model_type": model_type, "architectures": [kind]}, {"model.safetensors": header}
    )


def tying_classes() -> list[tuple[str, str, dict[str, str]]]:
    found = []
    for model_type in sorted(set(BY_MODEL_TYPE) - {"timm"} - _APART):
        try:
            names = classes_of(model_type)
        except (ValueError, KeyError):  # a type that transformers does not know
            continue
        for name in names:
            keys: Any = getattr(hf, name)._tied_weights_keys
            if keys and any(word in " ".join(keys) for word in ("embed", "head", "decoder", "proj")):
                found.append((model_type, name, dict(keys)))
    return found


@pytest.mark.parametrize(("model_type", "kind", "keys"), tying_classes())
def test_what_a_class_ties_is_known(model_type: str, kind: str, keys: dict[str, str]) -> None:
    found = tied_parameters(checkpoint(model_type, kind, sorted(set(keys.values()))))
    ours = {other: group.source for group in found for other in group.others}
    inner = {name for name in ours.keys() - keys.keys() if name.endswith("coder.embed_tokens.weight")}  # by the body
    told = {
        name.replace("embed_out.", "lm_head.") if model_type == "gpt_neox" else name: source
        for name, source in ours.items()
        if name not in inner
    }
    assert told == keys


def test_a_head_of_its_own_is_not_tied() -> None:
    held = checkpoint("llama", "LlamaForCausalLM", ["lm_head.weight", "model.embed_tokens.weight"])
    assert tied_parameters(held), "config.json leaves it open"
    apart = Checkpoint(held.files, {**held.config, "tie_word_embeddings": False}, held.headers)
    assert tied_parameters(apart) == []


def test_untying_is_said_at_every_level() -> None:
    config = {"model_type": "llava", "text_config": {"tie_word_embeddings": True}, "vision_config": {}}
    assert untied(config) == {
        "model_type": "llava", "text_config": {"tie_word_embeddings": False}, "vision_config": {},
        "tie_word_embeddings": False,
    }  # fmt: skip
