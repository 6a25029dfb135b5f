"""The rows whose W^Q, W^K and W^V share a tensor, or lie in one with something else.

Sources: transformers 5.23, `modeling_<model_type>.py`; for the rows called "code of the model", that code.
"""

from __future__ import annotations

from ..matrices import layouts
from .rows import DECODER, LATENT_LEAVES, QKV_PROJ, TEXT_ONLY, WITHOUT_TOWER, Architecture, Slot, fused, types

FUSED_ROWS: tuple[Architecture, ...] = (
    Architecture(
        "Decoder with gated queries",
        types("model", "qwen3_next qwen3_5_text qwen3_5_moe_text"),
        DECODER,
        QKV_PROJ,
        TEXT_ONLY,
        (WITHOUT_TOWER,),
        layouts={"q_proj": layouts.GATE},
    ),
    Architecture(
        "Decoder with latent attention",
        types(
            "model",
            "deepseek_v2 deepseek_v3 deepseek_v32 kimi_k2 glm_moe_dsa glm4_moe_lite youtu minicpm3 mistral4 axk1",
        ),
        DECODER,
        LATENT_LEAVES,
        layouts={"kv_b_proj": layouts.LATENT},
    ),
    Architecture(
        "GPT-2-like, Conv1D",
        {"gpt2": "transformer", "openai-gpt": "transformer", "imagegpt": "transformer"},
        (Slot("h.{layer}.attn"),),
        fused("c_attn", "c_proj"),
        layouts={"c_attn": layouts.COLUMNS, "c_proj": layouts.OUTPUT_COLUMNS},
    ),
    Architecture(
        "GPT-NeoX",
        {"gpt_neox": "gpt_neox", "gpt_neox_japanese": "gpt_neox_japanese"},
        (Slot("layers.{layer}.attention"),),
        fused("query_key_value", "dense"),
        layouts={"query_key_value": layouts.PER_HEAD},
    ),
    Architecture(
        "BLOOM",
        {"bloom": "transformer"},
        (Slot("h.{layer}.self_attention"),),
        fused("query_key_value", "dense"),
        layouts={"query_key_value": layouts.PER_HEAD},
    ),
    Architecture(
        "Falcon",
        {"falcon": "transformer"},
        (Slot("h.{layer}.self_attention"),),
        fused("query_key_value", "dense"),
        layouts={"query_key_value": layouts.FALCON},
    ),
    Architecture(
        "MPT",
        {"mpt": "transformer"},
        (Slot("blocks.{layer}.attn"),),
        fused("Wqkv", "out_proj"),
        layouts={"Wqkv": layouts.THIRDS},
    ),
    Architecture(
        "Phi-3",
        {"phi3": "model"},
        DECODER,
        fused("qkv_proj", "o_proj"),
        layouts={"qkv_proj": layouts.SIDE_BY_SIDE},
    ),
    Architecture(
        "GPTBigCode",
        {"gpt_bigcode": "transformer"},
        (Slot("h.{layer}.attn"),),
        fused("c_attn", "c_proj"),
        layouts={"c_attn": layouts.BIGCODE},
    ),
    Architecture(
        "Persimmon",
        {"persimmon": "model"},
        DECODER,
        fused("query_key_value", "dense"),
        layouts={"query_key_value": layouts.PER_HEAD},
    ),
    Architecture(
        "CodeGen",
        {"codegen": "transformer"},
        (Slot("h.{layer}.attn"),),
        fused("qkv_proj", "out_proj"),
        layouts={"qkv_proj": layouts.CODEGEN},
    ),
    Architecture(
        "ModernBERT",
        {"modernbert": "model"},
        (Slot("layers.{layer}.attn"),),
        fused("Wqkv", "Wo"),
        layouts={"Wqkv": layouts.THIRDS},
    ),
    Architecture(
        "DeBERTa",
        {"deberta": "deberta"},
        (Slot("encoder.layer.{layer}.attention"),),
        fused("self.in_proj", "output.dense"),
        layouts={"self.in_proj": layouts.PER_HEAD},
    ),
    Architecture(
        "timm vision transformer",
        {"timm": ""},
        (Slot("blocks.{layer}.attn"),),
        fused("qkv", "proj"),
        layouts={"qkv": layouts.THIRDS},
    ),
    Architecture(
        "BLIP, vision tower",
        types("", "blip blip_vision_model blip_2_vision_model"),
        (Slot("encoder.layers.{layer}.self_attn", "vision"),),
        fused("qkv", "projection"),
        ("vision_model.",),
        layouts={"qkv": layouts.THIRDS},
    ),
    Architecture(
        "DBRX (its class cannot be built in transformers 5.23)",
        {"dbrx": "transformer"},
        (Slot("blocks.{layer}.norm_attn_norm.attn"),),
        fused("Wqkv", "out_proj"),
        layouts={"Wqkv": layouts.DBRX},
    ),
    Architecture(
        "InternLM2 (code of the model)",
        {"internlm2": "model"},
        (Slot("layers.{layer}.attention"),),
        fused("wqkv", "wo"),
        layouts={"wqkv": layouts.GROUP_UNPROVEN},
    ),
    Architecture(
        "Baichuan (code of the model)",
        {"baichuan": "model"},
        DECODER,
        fused("W_pack", "o_proj"),
        layouts={"W_pack": layouts.THIRDS_UNPROVEN},
    ),
    Architecture(
        "Qwen-1 (code of the model)",
        {"qwen": "transformer"},
        (Slot("h.{layer}.attn"),),
        fused("c_attn", "c_proj"),
        layouts={"c_attn": layouts.THIRDS_UNPROVEN},
    ),
    Architecture(
        "ChatGLM (code of the model)",
        {"chatglm": "transformer"},
        (Slot("encoder.layers.{layer}.self_attention"),),
        fused("query_key_value", "dense"),
        layouts={"query_key_value": layouts.CHATGLM},
    ),
    Architecture(
        "OpenELM (code of the model)",
        {"openelm": "transformer"},
        (Slot("layers.{layer}.attn"),),
        fused("qkv_proj", "out_proj"),
        layouts={"qkv_proj": layouts.OPENELM},
    ),
    Architecture(
        "JAIS (code of the model)",
        {"jais": "transformer"},
        (Slot("h.{layer}.attn"),),
        fused("c_attn", "c_proj"),
        layouts={"c_attn": layouts.COLUMNS_UNPROVEN, "c_proj": layouts.OUTPUT_COLUMNS},
    ),
)
