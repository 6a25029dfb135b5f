"""The rows of models that see or hear: of them the text tower is taken.

Their files keep old names of it, which transformers 5 translates on loading (its `conversion_mapping.py`).
Sources: transformers 5.24, `modeling_<model_type>.py`; the names in published files, `tests/kit/published.py`.
"""

from __future__ import annotations

import re

from ..matrices import layouts
from .rows import LATENT_LEAVES, QKV_PROJ, TEXT_LAYERS, Architecture, Count, Slot, fused, types

# Parts of a multimodal model that are no text tower, as words in the names of their tensors.
OTHER_TOWERS = re.compile(
    r"vision|visual|vit\b|image|video|audio|speech|sound|talker|code2wav|token2wav|mtp|draft|eagle"
)
TEXT = (Slot("layers.{layer}.self_attn", "text", TEXT_LAYERS),)
_PREFIXES = ("language_model.", "language_model.model.", "model.language_model.", "model.language_model.model.")


def _text_tower(major: int) -> tuple[str, str, int]:
    """All the old names of the text tower are one module, since this major version of transformers."""
    old = r"^(language_model\.|(model\.)?language_model\.model\.(model\.)?|model\.)layers\."
    return old, "model.language_model.layers.", major


MULTIMODAL_ROWS: tuple[Architecture, ...] = (
    Architecture(
        "Multimodal, text tower",
        types(
            "model",
            "llava llava_next llava_next_video llava_onevision vipllava video_llava mistral3 gemma3 gemma3n gemma4 "
            "gemma4_unified paligemma qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe internvl aya_vision glm4v glm4v_moe "
            "glm46v glm_ocr cohere2_vision got_ocr2 embedding_gemma2 aria ovis2 lfm2_vl janus deepseek_vl "
            "deepseek_vl_hybrid exaone4_5 paddleocr_vl lighton_ocr video_llama_3 minimax_m3_vl "
            "hyperclovax_vision_v2",
        ),
        TEXT,
        QKV_PROJ,
        _PREFIXES,
        (_text_tower(4),),
    ),
    Architecture(
        "Multimodal, text tower with cross attention",
        types("model", "mllama"),
        (*TEXT, Slot("layers.{layer}.cross_attn", "text cross", TEXT_LAYERS)),
        QKV_PROJ,
        _PREFIXES,
        (_text_tower(4),),
    ),
    Architecture(
        "Multimodal, text tower with gated queries",
        types("model", "qwen3_5 qwen3_5_moe minicpmv4_6"),
        TEXT,
        QKV_PROJ,
        _PREFIXES,
        (_text_tower(4),),
        layouts={"q_proj": layouts.GATE},
    ),
    Architecture(
        "Multimodal, text tower with latent attention",
        types("model", "kimi_k25"),
        (*TEXT, Slot("blocks.{layer}.self_attn", "text", TEXT_LAYERS)),  # the second as transformers 5 saves it
        LATENT_LEAVES,
        _PREFIXES,
        ((r"(^|\.)blocks\.", r"\1layers.", 5), _text_tower(5)),
        layouts={"kv_b_proj": layouts.LATENT},
    ),
    Architecture(
        "Fuyu",
        types("model", "fuyu"),
        TEXT,
        fused("query_key_value", "dense"),
        _PREFIXES,
        (_text_tower(4),),
        layouts={"query_key_value": layouts.PER_HEAD},
    ),
    Architecture(
        "Multimodal, text tower beside audio",
        types(
            "model",
            "qwen2_audio voxtral audioflamingo3 musicflamingo glmasr granite_speech granite_speech_plus qwen3_asr "
            "qwen2_5_omni_thinker qwen3_omni_moe_thinker",
        ),
        TEXT,
        QKV_PROJ,
        (*_PREFIXES, "language_model.model.model."),  # the last as transformers 5.17 saves it
        (_text_tower(5),),
    ),
    Architecture(
        "Qwen-Omni, text tower of the thinker",
        types("", "qwen2_5_omni qwen3_omni_moe"),
        (Slot("layers.{layer}.self_attn", "text", Count(("num_hidden_layers",), "thinker_config.text_config")),),
        QKV_PROJ,
        ("thinker.model.", "thinker.model.language_model."),
        ((r"^thinker\.model\.layers\.", "thinker.model.language_model.layers.", 5),),
    ),
    Architecture(
        "Multimodal, text tower (Idefics)",
        types("model", "idefics2 idefics3 smolvlm"),
        (Slot("text_model.layers.{layer}.self_attn", "text", TEXT_LAYERS),),
        QKV_PROJ,
    ),
    Architecture(
        "Llama-4 multimodal, text tower",
        types("language_model.model", "llama4"),
        TEXT,
        QKV_PROJ,
    ),
)
