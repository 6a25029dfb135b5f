"""How files on the Hub name W^Q of a model type, where that is not plain, and a saved model renamed to that.

Old files keep the names that their model had when it was published: transformers 5 reads them through a conversion
table and writes most of them again. Sources: that table (transformers 5.24, `conversion_mapping.py`), and what is known
of the files. That `from_pretrained` misses nothing under these names is tested; that every repository has them is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

MTP = "mtp.layers.0.self_attn"


@dataclass(frozen=True)
class Published:
    """tensor: W^Q of a layer `N` in published files; renames: from what transformers saves, as (expression, new);
    config: what config.json states there, nested texts inside; prediction: whether there are layers under mtp."""

    tensor: str
    renames: tuple[tuple[str, str], ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    prediction: bool = False


def publish(folder: Path, published: Published) -> list[str]:
    """Rename a folder that `save_pretrained` wrote; the names it has then."""
    path = folder / "model.safetensors"
    tensors = {_renamed(name, published): value for name, value in load_file(path).items()}
    if published.prediction:
        attention = {name: value for name, value in tensors.items() if re.search(r"\.self_attn\.._proj\.", name)}
        tensors |= {f"{MTP}.{name.split('self_attn.')[1]}": value.clone() for name, value in attention.items()}
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(_merged(config, published.config)))
    return sorted(tensors)


def _renamed(name: str, published: Published) -> str:
    for expression, new in published.renames:
        name = re.sub(expression, new, name)
    return name


def _merged(config: dict[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    nested = {
        key: _merged(config.get(key, {}), value) if isinstance(value, dict) else value  # type: ignore[arg-type]
        for key, value in changes.items()
    }
    return {**config, **nested}


_OLD = "language_model.model.layers.N.self_attn.q_proj.weight"
_NEW = "model.language_model.layers.N.self_attn.q_proj.weight"
_PLAIN = "model.layers.N.self_attn.q_proj.weight"
_LATENT = "model.layers.N.self_attn.q_b_proj.weight"
_BODY = ((r"^transformer\.", ""),)

PUBLISHED: Mapping[str, Published] = {
    # llava-hf/llava-1.5-7b-hf, google/gemma-3-4b-it, mistralai/Mistral-Small-3.1-24B-Instruct-2503, ...
    **dict.fromkeys(
        ("llava", "llava_next", "llava_next_video", "llava_onevision", "vipllava", "video_llava", "gemma3", "paligemma",
         "internvl", "aya_vision", "got_ocr2", "aria", "qwen2_audio", "voxtral", "granite_speech", "mistral3"),
        Published(_OLD),
    ),
    "llama4": Published(_OLD),  # meta-llama/Llama-4-Scout-17B-16E-Instruct
    "mllama": Published(_OLD),  # meta-llama/Llama-3.2-11B-Vision-Instruct
    # google/gemma-3n-E2B-it, Qwen/Qwen3-VL-4B-Instruct, zai-org/GLM-4.1V-9B-Thinking, GLM-4.5V, GLM-4.6V, ...
    **dict.fromkeys(
        ("gemma3n", "gemma4", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe", "glm46v", "cohere2_vision", "lfm2_vl"),
        Published(_NEW),
    ),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), Published(_NEW, prediction=True)),  # Qwen/Qwen3.5-27B
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "paddleocr_vl"), Published(_PLAIN)),  # Qwen/Qwen2.5-VL-7B-Instruct
    "fuyu": Published("language_model.model.layers.N.self_attn.query_key_value.weight"),  # adept/fuyu-8b
    **dict.fromkeys(("idefics3", "smolvlm"), Published("model.text_model.layers.N.self_attn.q_proj.weight")),
    # Qwen/Qwen2.5-Omni-7B names a class that is no model of transformers.
    "qwen2_5_omni": Published(f"thinker.{_PLAIN}", config={"architectures": ["Qwen2_5OmniModel"]}),
    "qwen3_omni_moe": Published(f"thinker.{_PLAIN}"),
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "glm_moe_dsa"), Published(_LATENT)),
    "kimi_k2": Published(_LATENT, config={"model_type": "kimi_k2"}),  # moonshotai/Kimi-K2-Instruct
    "kimi_k25": Published(  # moonshotai/Kimi-K2.5
        f"language_model.{_LATENT}", ((r"^language_model\.model\.blocks", "language_model.model.layers"),),
        {"text_config": {"model_type": "kimi_k2"}},
    ),
    **dict.fromkeys(("minimax_m2", "qwen3_next", "gpt_oss", "ministral3"), Published(_PLAIN)),
    # Of these the Hub has the body, and config.json names a class with a head.
    "gpt2": Published("h.N.attn.c_attn.weight", _BODY),
    "bloom": Published("h.N.self_attention.query_key_value.weight", _BODY),
    "bert": Published("bert.encoder.layer.N.attention.self.query.weight"),
    "roberta": Published("roberta.encoder.layer.N.attention.self.query.weight"),
    "distilbert": Published("distilbert.transformer.layer.N.attention.q_lin.weight"),
    "electra": Published("electra.encoder.layer.N.attention.self.query.weight"),
    "vit": Published("vit.encoder.layer.N.attention.attention.query.weight"),
    "deit": Published("deit.encoder.layer.N.attention.attention.query.weight"),
    "dinov2": Published("dinov2.encoder.layer.N.attention.attention.query.weight"),
    "clip": Published("text_model.encoder.layers.N.self_attn.q_proj.weight"),
    "siglip": Published("text_model.encoder.layers.N.self_attn.q_proj.weight"),
    "wav2vec2": Published("wav2vec2.encoder.layers.N.attention.q_proj.weight"),
}  # fmt: skip
