"""Where W^Q and W^V lie, by `model_type`: one row per family of checkpoints.

A slot is a path inside the base model with `{layer}` for the layer's number; together with a leaf name and
`.weight` it is the name of a tensor. The base prefix (`model.`, `bert.`, ...) may stand before it or not.
A new architecture is a row, or a name in one. Sources: transformers 5.24, `modeling_<model_type>.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..matrices.layouts import THIRDS
from .fused import FUSED_ROWS
from .multimodal import MULTIMODAL_ROWS
from .rows import (
    BERT_MLP,
    DECODER,
    LAYERS,
    MLP_LEAVES,
    N_LAYER,
    N_LAYERS,
    NUM_LAYERS,
    QKV_PROJ,
    TEXT_LAYERS,
    TEXT_ONLY,
    VISION_LAYERS,
    WITHOUT_TOWER,
    Architecture,
    Count,
    Slot,
    leaves,
    types,
)

_BERT = leaves("self.query", "self.key", "self.value", "output.dense", **BERT_MLP)  # W^O lies beside the others
_VIT = leaves("attention.query", "attention.key", "attention.value", "output.dense", **BERT_MLP)
_DINO = {**_VIT, **MLP_LEAVES}
_ENCODER_LAYERS = Count(("num_hidden_layers", "encoder_layers"))
_DECODER_LAYERS = Count(("decoder_layers",))
_T5_DECODER = Count(("num_decoder_layers",), otherwise=NUM_LAYERS.fields)
_ENCODER_DECODER = (
    Slot("encoder.layers.{layer}.self_attn", "encoder", _ENCODER_LAYERS),
    Slot("decoder.layers.{layer}.self_attn", "decoder", _DECODER_LAYERS),
    Slot("decoder.layers.{layer}.encoder_attn", "decoder cross", _DECODER_LAYERS),
    Slot("decoder.layers.{layer}.cross_attention", "decoder cross", _DECODER_LAYERS),  # NLLB-MoE
)

_TWO_TOWERS = (
    Slot("text_model.encoder.layers.{layer}.self_attn", "text", TEXT_LAYERS),
    Slot("vision_model.encoder.layers.{layer}.self_attn", "vision", VISION_LAYERS),
)

# transformers 5 unites names that its version 4 models had, and reads old files through a conversion table.
_VIT_LEAVES = tuple(
    (rf"attention\.{old}$", f"attention.{new}", 5)
    for old, new in (
        (r"attention\.query", "q_proj"),
        (r"attention\.key", "k_proj"),
        (r"attention\.value", "v_proj"),
        (r"output\.dense", "o_proj"),
    )
)
_VIT_LAYERS = (
    (r"(^|\.)encoder\.layer\.", r"\1layers.", 5),
    (r"(layers\.\d+)\.intermediate\.dense$", r"\1.mlp.fc1", 5),
    (r"(layers\.\d+)\.output\.dense$", r"\1.mlp.fc2", 5),
)

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "Llama-like decoder",
        types(
            "model",
            "llama mistral mixtral ministral ministral3 qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text "
            "embedding_gemma2_text vaultgemma olmo olmo2 olmo3 olmoe flex_olmo granite granitemoe granitemoeshared "
            "cohere cohere2 starcoder2 stablelm smollm3 nemotron exaone4 apertus arcee ernie4_5 ernie4_5_moe glm glm4 "
            "glm4_moe phi phimoe gpt_oss llama4_text helium "
            "seed_oss hunyuan_v1_dense hunyuan_v1_moe dots1 minimax_m2 bitnet "
            "diffllama doge cwm solar_open mellum jais2 afmoe nanochat "
            "aria_text cohere2_moe eurobert exaone_moe hyperclovax kolibri1 mimo_v2_flash minimax_m3_vl_text "
            "inkling_text apertus1p5_text beam higgs_audio_v2 qwen2_vl_text qwen2_5_vl_text qwen3_vl_text "
            "qwen3_vl_moe_text glm4v_text glm4v_moe_text glm_ocr_text granite_docling_text muse_glimmer_text "
            "muse_spark_text",
        ),
        DECODER,
        QKV_PROJ,
        ("transformer.",),  # of the classes for question answering
    ),
    Architecture(
        "HunYuan 3",
        types("model", "hy_v3"),
        DECODER,
        QKV_PROJ,
        renames=((r"\.mlp\.shared_mlp\.", ".mlp.shared_experts.", 5),),
    ),
    Architecture(
        "Hybrid decoder",
        types(
            "model",
            "jamba bamba falcon_h1 granitemoehybrid lfm2 lfm2_moe olmo_hybrid gemma3n_text gemma4_text "
            "gemma4_unified_text lara_mini",
        ),
        DECODER,
        QKV_PROJ,
        TEXT_ONLY,
        (WITHOUT_TOWER,),
    ),
    *MULTIMODAL_ROWS,
    Architecture(
        "OPT-like decoder",
        {"opt": "model", "biogpt": "biogpt"},
        (Slot("decoder.layers.{layer}.self_attn", count=LAYERS), Slot("layers.{layer}.self_attn", count=LAYERS)),
        QKV_PROJ,
        mlp=("",),
    ),
    Architecture("XGLM", {"xglm": "model"}, (Slot("layers.{layer}.self_attn", count=NUM_LAYERS),), QKV_PROJ, mlp=("",)),
    Architecture(
        "BART-like encoder-decoder",
        types(
            "model",
            "bart mbart pegasus pegasus_x marian blenderbot blenderbot-small m2m_100 plbart mvp nllb-moe whisper "
            "speech_to_text trocr",
        ),
        _ENCODER_DECODER,
        QKV_PROJ,
        mlp=("", "ffn"),
    ),
    Architecture(
        "T5-like",
        types("", "t5 mt5 umt5 longt5 switch_transformers udop pop2piano"),
        (
            Slot("encoder.block.{layer}.layer.0.SelfAttention", "encoder", NUM_LAYERS),
            Slot("encoder.block.{layer}.layer.0.LocalSelfAttention", "encoder", NUM_LAYERS),
            Slot("encoder.block.{layer}.layer.0.TransientGlobalSelfAttention", "encoder", NUM_LAYERS),
            Slot("decoder.block.{layer}.layer.0.SelfAttention", "decoder", _T5_DECODER),
            Slot("decoder.block.{layer}.layer.1.EncDecAttention", "decoder cross", _T5_DECODER),
        ),
        leaves("q", "k", "v", "o"),
        ("transformer.",),
        mlp=tuple(f"layer.{place}.{name}" for place in (1, 2) for name in ("DenseReluDense", "mlp")),
    ),
    Architecture(
        "BERT-like encoder",
        {
            "bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "xlm-roberta-xl": "roberta",
            "camembert": "roberta", "electra": "electra", "esm": "esm", "ernie": "ernie", "layoutlm": "layoutlm",
            "layoutlmv2": "layoutlmv2", "layoutlmv3": "layoutlmv3", "lilt": "lilt", "luke": "luke",
            "markuplm": "markuplm", "megatron-bert": "bert", "mobilebert": "mobilebert",
            "nystromformer": "nystromformer",
            "rembert": "rembert", "roberta-prelayernorm": "roberta_prelayernorm", "roc_bert": "roc_bert",
            "splinter": "splinter", "big_bird": "bert", "data2vec-text": "data2vec_text", "convbert": "convbert",
            "xmod": "roberta", "yoso": "yoso", "mra": "mra", "visual_bert": "visual_bert",
            "bert-generation": "bert", "bros": "bros", "tapas": "tapas",
        },
        (Slot("encoder.layer.{layer}.attention", count=LAYERS),),
        _BERT,
        mlp=("",),
        # The first needs a picture tower of another library, the attention of the second runs only on CUDA.
        unproven=frozenset(["layoutlmv2", "mra"]),
    ),
    Architecture(
        "MPNet",
        {"mpnet": "mpnet"},
        (Slot("encoder.layer.{layer}.attention.attn", count=LAYERS),),
        leaves("q", "k", "v", "o", **BERT_MLP),
        mlp=("",),
    ),
    Architecture(
        "ALBERT (one tensor serves every layer of a group)",
        {"albert": "albert"},
        (
            Slot(
                "encoder.albert_layer_groups.{layer}.albert_layers.{inner}.attention", "shared",
                Count(("num_hidden_groups",)), Count(("inner_group_num",)),
            ),
        ),
        leaves("query", "key", "value", "dense", up="ffn", down="ffn_output"),
        mlp=("",),
    ),
    Architecture(
        "DistilBERT",
        {"distilbert": "distilbert"},
        (Slot("transformer.layer.{layer}.attention", count=N_LAYERS),),
        leaves("q_lin", "k_lin", "v_lin", "out_lin"),
    ),
    Architecture(
        "XLM",
        {"xlm": "transformer", "flaubert": "transformer"},
        (Slot("attentions.{layer}", count=N_LAYERS),),
        leaves("q_lin", "k_lin", "v_lin", "out_lin"),
        mlp=("ffns.{layer}",),
    ),
    Architecture(
        "DeBERTa-v2",
        {"deberta-v2": "deberta", "sew-d": "sew_d"},
        (
            Slot("encoder.layer.{layer}.attention", count=LAYERS),
            Slot("encoder.encoder.layer.{layer}.attention", count=LAYERS),
        ),
        leaves("self.query_proj", "self.key_proj", "self.value_proj", "output.dense", **BERT_MLP),
        mlp=("",),
    ),
    Architecture("GPT-J", {"gptj": "transformer"}, (Slot("h.{layer}.attn", count=N_LAYER),), QKV_PROJ),
    Architecture(
        "GPT-Neo",
        {"gpt_neo": "transformer"},
        (Slot("h.{layer}.attn.attention", count=NUM_LAYERS),),
        QKV_PROJ,
    ),
    Architecture(
        "CLIP-like, two towers",
        types("", "clip siglip siglip2 metaclip_2 owlvit owlv2 clipseg"),
        _TWO_TOWERS,
        QKV_PROJ,
        ("owlvit.", "owlv2.", "clip."),
    ),
    Architecture(
        "CLIP-like, one tower",
        types("", "clip_text_model clip_vision_model siglip_text_model siglip_vision_model siglip2_vision_model"),
        (Slot("encoder.layers.{layer}.self_attn", count=LAYERS),),
        QKV_PROJ,
        ("text_model.", "vision_model."),
        ((r"^(text|vision)_model\.(?=encoder\.)", "", 5),),
    ),
    Architecture(
        "ViT-like",
        {
            "vit": "vit", "deit": "deit", "beit": "beit", "vit_mae": "vit", "vit_msn": "vit", "ijepa": "ijepa",
            "audio-spectrogram-transformer": "audio_spectrogram_transformer",
        },
        (Slot("encoder.layer.{layer}.attention", count=LAYERS),),
        _VIT,
        renames=(*_VIT_LEAVES, *_VIT_LAYERS),
        mlp=("",),
    ),
    Architecture(
        "DINOv2",
        {"dinov2": "dinov2", "dinov2_with_registers": "dinov2_with_registers"},
        (Slot("encoder.layer.{layer}.attention", count=LAYERS),),
        _DINO,
        renames=_VIT_LEAVES,
    ),
    Architecture(
        "Wav2Vec2-like",
        {
            "wav2vec2": "wav2vec2", "hubert": "hubert", "unispeech": "unispeech",
            "unispeech-sat": "unispeech_sat", "sew": "sew", "data2vec-audio": "data2vec_audio",
        },
        (Slot("encoder.layers.{layer}.attention", count=LAYERS),),
        QKV_PROJ,
    ),
    *FUSED_ROWS,
)  # fmt: skip

BY_MODEL_TYPE: Mapping[str, Architecture] = {name: row for row in ARCHITECTURES for name in row.model_types}

# For a model_type that no row knows: (q, v) leaf names that leave no doubt under a numbered layer.
LEAF_PAIRS = (
    ("in_proj_weight", "in_proj_weight", "in_proj_weight", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("query", "key", "value", "dense"),
    ("query_proj", "key_proj", "value_proj", "out_proj"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("to_q", "to_k", "to_v", "to_out.0"),
    ("wq", "wk", "wv", "wo"),
    ("Wq", "Wk", "Wv", "out_proj"),
    ("q", "k", "v", "o"),
)

# Of those, tensors with a known layout: torch.nn.MultiheadAttention documents [Q | K | V].
LEAF_LAYOUTS = {"in_proj_weight": THIRDS}

# Leaf of a tensor that holds more than one projection -> what it is.
FUSED = {
    "c_attn": "W^Q, W^K and W^V side by side",
    "query_key_value": "W^Q, W^K and W^V, in most models interleaved by head",
    "qkv_proj": "W^Q, W^K and W^V",
    "Wqkv": "W^Q, W^K and W^V",
    "wqkv": "W^Q, W^K and W^V, interleaved by group",
    "W_pack": "W^Q, W^K and W^V",
    "att_proj": "W^Q, W^K and W^V",
    "qkv": "W^Q, W^K and W^V",
    "qkv_linear": "W^Q, W^K and W^V",
    "in_proj": "W^Q, W^K and W^V",
    "in_proj_weight": "W^Q, W^K and W^V",
    "to_qkv": "W^Q, W^K and W^V",
    "kv_b_proj": "W^K and W^V behind a latent (multi-head latent attention)",
    "kv_proj": "keys and values in one",
}

# Types whose W^Q and W^V have tensors of their own that no LoRA adapter can take part of -> why.
UNREACHABLE = {
    "ibert": "its layers multiply by integers, and PEFT has no adapter for them",
    "wavlm": "its attention takes the weights without calling their modules, so that an adapter has no effect",
    "zamba": "several layers share one tensor but not one module, and an adapter would reach only one of them",
    "zamba2": "several layers share one tensor but not one module, and an adapter would reach only one of them",
}

# Under transformers 5 PEFT takes every target that ends in one of these names for experts of a mixture, if the model is
# of one of these types; an adapter of another module of that name would be dropped without a word
# (`_convert_peft_config_moe` of PEFT 0.21).
EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj")
NAMED_LIKE_EXPERTS = types(
    "",
    "afmoe beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe "
    "glm4_moe_lite glm4v_moe glm_moe_dsa hunyuan_v1_moe kimi_k2 mellum olmoe qwen3_moe qwen3_next qwen3_omni_moe "
    "qwen3_omni_moe_thinker solar_open",
)

# Classes without the base prefix, though their names do not end in "Model".
BODIES = frozenset(
    ["BertGenerationEncoder", "WhisperForAudioClassification", "Dinov2Backbone", "Dinov2WithRegistersBackbone"]
)
