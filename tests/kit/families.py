"""Tiny random models of real transformers classes, one a family: what the table of architectures is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

Inputs = dict[str, Tensor]
_WORDS, _HIDDEN = 61, 36


@dataclass(frozen=True)
class Family:
    """`build` makes the model; `inputs` are for one forward pass; `one_key` are inputs whose self-attention sees
    a single key, so that its softmax is 1 whatever W^Q is (None where a model cannot have that)."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    one_key: Callable[[], Inputs] | None


def build(name: str) -> nn.Module:
    """The model with all parameters random and large enough that no zero bias or weak attention hides a fault."""
    torch.manual_seed(0)
    model = {**FAMILIES, **FUSED}[name].build().eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
        elif parameter.ndim == 2 and parameter.requires_grad:
            parameter.data *= 4
    return model


@torch.no_grad()
def output(model: nn.Module, inputs: Inputs) -> Tensor:
    """One float tensor that depends on everything the model does."""
    result = model(**inputs)
    names = ("logits", "last_hidden_state", "image_embeds", "text_embeds", "logits_per_text", "start_logits")
    found = [result[name].flatten().double() for name in names if name in result and result[name] is not None]
    return torch.cat(found)


def _words(length: int = 7) -> Inputs:
    return {"input_ids": torch.randint(3, _WORDS, (2, length), generator=torch.Generator().manual_seed(1))}


def _word() -> Inputs:
    return _words(1)


def _pair(source: int = 7, target: int = 5) -> Inputs:
    return {**_words(source), "decoder_input_ids": _words(target)["input_ids"]}


def _image() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def _sound() -> Inputs:
    return {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(1))}


_SIZES = {"hidden_size": _HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 50}
_TEXT = {**_SIZES, "vocab_size": _WORDS, "max_position_embeddings": 32}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_VISION = {**_SIZES, "image_size": 16, "patch_size": 8}
_BART = {
    "d_model": _HIDDEN, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 6, "vocab_size": _WORDS,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 40, "decoder_ffn_dim": 44, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def _decoder(model: type, config: type, **changes: Any) -> Family:
    return Family(lambda: model(config(**{**_GROUPED, **changes})), _words, _word)


def _encoder(model: type, config: type, **changes: Any) -> Family:
    return Family(lambda: model(config(**{**_TEXT, "pad_token_id": 0, **changes})), _words, _word)


def _vision(model: type, config: type, **changes: Any) -> Family:
    return Family(lambda: model(config(**{**_VISION, **changes})), _image, None)


def _whisper(model: type) -> nn.Module:
    return model(
        hf.WhisperConfig(**{**_BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16})
    )


def _mel() -> Tensor:
    return torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))


def _whisper_inputs() -> Inputs:
    return {"input_features": _mel(), "decoder_input_ids": _words(5)["input_ids"]}


def _clip(model: type, config: type) -> nn.Module:
    return model(config(text_config={**_TEXT, "eos_token_id": 2}, vision_config=_VISION, projection_dim=20))


def _llava(model: type) -> nn.Module:
    text, vision = hf.LlamaConfig(**_GROUPED), hf.CLIPVisionConfig(**_VISION)
    return model(hf.LlavaConfig(text_config=text, vision_config=vision))


def _idefics3() -> nn.Module:
    text, vision = hf.LlamaConfig(**_GROUPED), {**_VISION, "patch_size": 4}
    return hf.Idefics3ForConditionalGeneration(
        hf.Idefics3Config(text_config=text, vision_config=vision, vocab_size=_WORDS, pad_token_id=0, image_token_id=1)
    )


def _gemma3() -> nn.Module:
    text = hf.Gemma3TextConfig(**{**_GROUPED, "num_key_value_heads": 1, "head_dim": 10})
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config=hf.SiglipVisionConfig(**_VISION), mm_tokens_per_image=4)
    )


def _qwen2_vl(model: type) -> nn.Module:
    text = {**_GROUPED, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 4, "hidden_size": _HIDDEN}
    return model(hf.Qwen2VLConfig(text_config=text, vision_config=vision))


def _gemma3n() -> nn.Module:
    """Layers 2 and 3 use the keys and values of layers before them."""
    return hf.Gemma3nForCausalLM(
        hf.Gemma3nTextConfig(
            **{**_GROUPED, "num_hidden_layers": 4, "head_dim": 10}, num_kv_shared_layers=2, laurel_rank=4,
            vocab_size_per_layer_input=_WORDS, hidden_size_per_layer_input=8,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    )  # fmt: skip


_SOUND_SIZES = {
    **_SIZES, "vocab_size": 20, "conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (5, 5),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_T5 = {
    "d_model": _HIDDEN, "d_kv": 5, "num_heads": 4, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 1,
    "vocab_size": _WORDS, "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": _decoder(hf.LlamaForCausalLM, hf.LlamaConfig),
    "mistral": _decoder(hf.MistralForCausalLM, hf.MistralConfig),
    "mixtral": _decoder(hf.MixtralForCausalLM, hf.MixtralConfig, num_local_experts=2, intermediate_size=48),
    "qwen2 with biases": _decoder(hf.Qwen2ForCausalLM, hf.Qwen2Config),
    "qwen3, heads wider than hidden": _decoder(hf.Qwen3ForCausalLM, hf.Qwen3Config, head_dim=10),
    "gemma2": _decoder(hf.Gemma2ForCausalLM, hf.Gemma2Config, head_dim=10),
    "gemma3 text, one KV head": _decoder(hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, head_dim=10, num_key_value_heads=1),
    "phi": _decoder(hf.PhiForCausalLM, hf.PhiConfig, num_attention_heads=3, num_key_value_heads=3),
    "olmo2": _decoder(hf.Olmo2ForCausalLM, hf.Olmo2Config),
    "cohere": _decoder(hf.CohereForCausalLM, hf.CohereConfig),
    "starcoder2": _decoder(hf.Starcoder2ForCausalLM, hf.Starcoder2Config),
    "stablelm": _decoder(hf.StableLmForCausalLM, hf.StableLmConfig),
    # Its attention sinks take part of the softmax, so that even one key does not get all of it.
    "gpt-oss": Family(
        lambda: hf.GptOssForCausalLM(
            hf.GptOssConfig(
                **{**_GROUPED, "intermediate_size": 48}, head_dim=10, num_local_experts=2, num_experts_per_tok=1
            )
        ),
        _words,
        None,
    ),
    "opt": Family(
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**_TEXT, ffn_dim=40, word_embed_proj_dim=_HIDDEN)), _words, _word
    ),
    "gptj": Family(
        lambda: hf.GPTJForCausalLM(
            hf.GPTJConfig(vocab_size=_WORDS, n_embd=_HIDDEN, n_layer=2, n_head=3, rotary_dim=4, n_positions=32)
        ),
        _words,
        _word,
    ),
    "gpt neo": Family(
        lambda: hf.GPTNeoForCausalLM(
            hf.GPTNeoConfig(
                vocab_size=_WORDS, hidden_size=_HIDDEN, num_layers=2, num_heads=6, max_position_embeddings=32,
                attention_types=[[["global", "local"], 1]], window_size=8, intermediate_size=40,
            )
        ),
        _words,
        _word,
    ),
    "bert with a head": _encoder(hf.BertForMaskedLM, hf.BertConfig),
    "bert body": _encoder(hf.BertModel, hf.BertConfig),
    "roberta": _encoder(hf.RobertaForMaskedLM, hf.RobertaConfig),
    "xlm-roberta": _encoder(hf.XLMRobertaForSequenceClassification, hf.XLMRobertaConfig),
    "camembert": _encoder(hf.CamembertForMaskedLM, hf.CamembertConfig),
    "electra": _encoder(hf.ElectraForMaskedLM, hf.ElectraConfig, embedding_size=20),
    "deberta-v2": _encoder(hf.DebertaV2ForMaskedLM, hf.DebertaV2Config),
    "mpnet": _encoder(hf.MPNetForMaskedLM, hf.MPNetConfig),
    "albert": _encoder(hf.AlbertForMaskedLM, hf.AlbertConfig, embedding_size=20),
    "distilbert": Family(
        lambda: hf.DistilBertForMaskedLM(
            hf.DistilBertConfig(vocab_size=_WORDS, dim=_HIDDEN, n_layers=2, n_heads=6, hidden_dim=40)
        ),
        _words,
        _word,
    ),
    "xlm": Family(
        lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(vocab_size=_WORDS, emb_dim=_HIDDEN, n_layers=2, n_heads=6)),
        _words,
        _word,
    ),
    "t5, heads narrower than the model": Family(
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)), _pair, lambda: _pair(1, 1)
    ),
    "umt5": Family(lambda: hf.UMT5ForConditionalGeneration(hf.UMT5Config(**_T5)), _pair, lambda: _pair(1, 1)),
    "bart": Family(lambda: hf.BartForConditionalGeneration(hf.BartConfig(**_BART)), _pair, lambda: _pair(1, 1)),
    "pegasus": Family(
        lambda: hf.PegasusForConditionalGeneration(hf.PegasusConfig(**_BART)), _pair, lambda: _pair(1, 1)
    ),
    "marian": Family(lambda: hf.MarianMTModel(hf.MarianConfig(**_BART)), _pair, lambda: _pair(1, 1)),
    "whisper": Family(lambda: _whisper(hf.WhisperForConditionalGeneration), _whisper_inputs, None),
    "clip": Family(lambda: _clip(hf.CLIPModel, hf.CLIPConfig), lambda: {**_words(), **_image()}, None),
    "siglip": Family(
        lambda: hf.SiglipModel(hf.SiglipConfig(text_config=_TEXT, vision_config=_VISION)),
        lambda: {**_words(), **_image()},
        None,
    ),
    "clip text": _encoder(hf.CLIPTextModel, hf.CLIPTextConfig, eos_token_id=2),
    "siglip text": _encoder(hf.SiglipTextModel, hf.SiglipTextConfig),
    "clip vision": _vision(hf.CLIPVisionModel, hf.CLIPVisionConfig),
    "vit": _vision(hf.ViTForImageClassification, hf.ViTConfig),
    "deit": _vision(hf.DeiTForImageClassification, hf.DeiTConfig),
    "beit": _vision(hf.BeitForImageClassification, hf.BeitConfig),
    "dinov2": _vision(hf.Dinov2ForImageClassification, hf.Dinov2Config),
    "wav2vec2": Family(lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**_SOUND_SIZES)), _sound, None),
    "hubert": Family(lambda: hf.HubertForCTC(hf.HubertConfig(**_SOUND_SIZES)), _sound, None),
    "llava, text tower": Family(lambda: _llava(hf.LlavaForConditionalGeneration), _words, _word),
    "llava body, text tower": Family(lambda: _llava(hf.LlavaModel), _words, _word),
    "gemma3, text tower": Family(_gemma3, _words, _word),
    "qwen2-vl, text tower": Family(lambda: _qwen2_vl(hf.Qwen2VLForConditionalGeneration), _words, _word),
    "qwen2-vl body, text tower": Family(lambda: _qwen2_vl(hf.Qwen2VLModel), _words, _word),
    "idefics3, text tower": Family(_idefics3, _words, _word),
    "gemma3n text, shared keys and values": Family(_gemma3n, _words, _word),
    "lfm2, one layer of two is attention": _decoder(
        hf.Lfm2ForCausalLM, hf.Lfm2Config, layer_types=["conv", "full_attention"], block_ff_dim=50
    ),
    "helium": _decoder(hf.HeliumForCausalLM, hf.HeliumConfig, head_dim=6),
    "llama answering questions": _decoder(hf.LlamaForQuestionAnswering, hf.LlamaConfig),
    "bert generation body": _encoder(hf.BertGenerationEncoder, hf.BertGenerationConfig),
    "esm": _encoder(hf.EsmForMaskedLM, hf.EsmConfig, mask_token_id=2, token_dropout=False),
    "mobilebert": _encoder(
        hf.MobileBertForMaskedLM, hf.MobileBertConfig, embedding_size=24, intra_bottleneck_size=18,
        true_hidden_size=18, num_feedforward_networks=1,
    ),
    "nllb-moe": Family(
        lambda: hf.NllbMoeForConditionalGeneration(hf.NllbMoeConfig(**_BART, num_experts=2)), _pair, lambda: _pair(1, 1)
    ),
    "whisper for audio classification": Family(
        lambda: _whisper(hf.WhisperForAudioClassification), lambda: {"input_features": _mel()}, None
    ),
    "unispeech": Family(lambda: hf.UniSpeechForCTC(hf.UniSpeechConfig(**_SOUND_SIZES)), _sound, None),
    "owlvit": Family(lambda: _clip(hf.OwlViTModel, hf.OwlViTConfig), lambda: {**_words(), **_image()}, None),
    "switch transformers": Family(
        lambda: hf.SwitchTransformersForConditionalGeneration(
            hf.SwitchTransformersConfig(**_T5, num_experts=2, expert_capacity=64)
        ),
        _pair,
        lambda: _pair(1, 1),
    ),
}  # fmt: skip


_HEADED = {"n_embd": _HIDDEN, "n_layer": 2, "n_head": 6, "vocab_size": _WORDS, "n_positions": 32}
_MLA = {
    **_TEXT, "num_key_value_heads": 6, "kv_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
    "v_head_dim": 7, "head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 20, "first_k_dense_replace": 1, "pad_token_id": 0,
}  # fmt: skip
_DELTA = {"layer_types": ["full_attention", "linear_attention"], "linear_num_key_heads": 2, "head_dim": 10,
          "linear_num_value_heads": 2, "linear_key_head_dim": 6, "linear_value_head_dim": 6, "num_experts": 4,
          "num_experts_per_tok": 2, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 20}  # fmt: skip


_DBRX = {
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 2, "moe_top_k": 1},
}


def _falcon(**changes: Any) -> Family:
    return _decoder(hf.FalconForCausalLM, hf.FalconConfig, **{"bias": True, "ffn_hidden_size": 50, **changes})


# Models whose W^Q or W^V is a part of a larger tensor.
FUSED: Mapping[str, Family] = {
    "gpt2": _decoder(hf.GPT2LMHeadModel, hf.GPT2Config, **_HEADED),
    "openai-gpt": Family(lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**_HEADED)), _words, _word),
    "gpt-neox": _decoder(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig),
    "bloom": _decoder(hf.BloomForCausalLM, hf.BloomConfig, n_layer=2, n_head=6),
    "falcon, one key": _falcon(multi_query=True, new_decoder_architecture=False),
    "falcon, groups": _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon, heads": _falcon(multi_query=False, new_decoder_architecture=False),
    "mpt": _decoder(hf.MptForCausalLM, hf.MptConfig, d_model=_HIDDEN, n_heads=6, n_layers=2, max_seq_len=32),
    "phi3, grouped": _decoder(hf.Phi3ForCausalLM, hf.Phi3Config),
    "gpt-bigcode, one key": _decoder(hf.GPTBigCodeForCausalLM, hf.GPTBigCodeConfig, **_HEADED, multi_query=True),
    "gpt-bigcode, heads": _decoder(hf.GPTBigCodeForCausalLM, hf.GPTBigCodeConfig, **_HEADED, multi_query=False),
    # Its attention reads `rope_theta` of its own config, as the published one has it.
    "dbrx, grouped": _decoder(
        hf.DbrxForCausalLM, hf.DbrxConfig, d_model=_HIDDEN, n_heads=6, n_layers=2, max_seq_len=32, **_DBRX
    ),
    "persimmon": _decoder(
        hf.PersimmonForCausalLM, hf.PersimmonConfig, hidden_size=48, num_key_value_heads=6, qk_layernorm=False
    ),
    "codegen": Family(
        lambda: hf.CodeGenForCausalLM(hf.CodeGenConfig(**{**_HEADED, "n_embd": 48, "n_head": 8}, rotary_dim=4)),
        _words,
        _word,
    ),
    "modernbert": _encoder(hf.ModernBertForMaskedLM, hf.ModernBertConfig, global_attn_every_n_layers=1),
    "deberta": _encoder(hf.DebertaForMaskedLM, hf.DebertaConfig),
    "qwen3-next, gated queries": _decoder(hf.Qwen3NextForCausalLM, hf.Qwen3NextConfig, **_DELTA),
    "deepseek-v3, latent": _decoder(hf.DeepseekV3ForCausalLM, hf.DeepseekV3Config, **_MLA, q_lora_rank=13),
    "deepseek-v2, latent, plain queries": _decoder(
        hf.DeepseekV2ForCausalLM, hf.DeepseekV2Config, **_MLA, q_lora_rank=None
    ),
}  # fmt: skip


_CLASSES = (
    "MODEL", "MODEL_FOR_CAUSAL_LM", "MODEL_FOR_MASKED_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_CTC",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT", "MODEL_FOR_IMAGE_CLASSIFICATION", "MODEL_FOR_QUESTION_ANSWERING",
    "MODEL_FOR_AUDIO_CLASSIFICATION", "MODEL_FOR_SEQUENCE_CLASSIFICATION",
)  # fmt: skip


def classes_of(model_type: str) -> list[str]:
    """The classes that transformers' auto classes choose for a model type, the body first, without its towers'."""
    found: dict[str, None] = {}
    for mapping in _CLASSES:
        names = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").get(model_type, ())
        found.update(dict.fromkeys([names] if isinstance(names, str) else names))
    config = type(hf.AutoConfig.for_model(model_type))
    return [name for name in found if getattr(hf, name).config_class in (None, config)]


# Every size that a config may have, and what single types need besides; None leaves a field to its default.
_SHRUNKEN = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "embed_dim"), 48),
    **dict.fromkeys(("word_embed_proj_dim", "original_embedding_size", "projection_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "depth", "num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("num_global_key_value_heads", "num_experts_per_tok", "moe_k", "num_feat_extract_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("laurel_rank", "mamba_d_state", "num_conv_pos_embeddings"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_ff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "image_size"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_2d_position_embeddings"), 64),
    **dict.fromkeys(("head_dim", "global_head_dim", "entity_emb_size"), 16),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "entity_vocab_size"), 99),
    **dict.fromkeys(("patch_size", "rotary_dim", "hidden_size_per_layer_input", "expert_capacity"), 8),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "bos_token_id", "decoder_start_token_id"), 1),
    "d_kv": 12, "mamba_n_heads": 8, "mamba_d_head": 12, "mamba_d_ssm": 96, "xpath_unit_hidden_size": 8,
    "num_conv_pos_embedding_groups": 2, "conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (5, 5),
    "pad_token_id": 0, "eos_token_id": 2, "num_kv_shared_layers": 0, "base_channels": 32,
}  # fmt: skip
_NO_STAGES = dict.fromkeys(("out_features", "stage_names", "out_indices", "_out_features", "_out_indices"))
_FOUR = {
    "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "activation_sparsity_pattern": None, "per_layer_config": None,
}  # fmt: skip
_LATENT = {
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "qk_head_dim": 12, "head_dim": 4,
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "index_head_dim": 8, "index_n_heads": 2,
    "num_experts_per_tok": 2,
}  # fmt: skip
_LATENT_TYPES = (
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite", "youtu", "minicpm3", "mistral4",
    "axk1", "axk2",
)  # fmt: skip
# Positions have three axes, each with a share of the rotated pairs.
_THREE_AXES = (
    "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen3_omni_moe_text", "qwen3_vl_text",
    "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text",
    "paddleocr_vl_text",
)  # fmt: skip
_NEEDS: Mapping[str, Mapping[str, Any]] = {
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "esm": {"vocab_size": 99, "pad_token_id": 0, "mask_token_id": 3},
    "beit": _NO_STAGES,
    "dinov2": _NO_STAGES,
    "dinov2_with_registers": _NO_STAGES,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "layer_types": None},
    "bamba": {"attn_layer_indices": [1], "layer_types": None},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "gemma3n_text": _FOUR,
    "gemma4_text": _FOUR,
    "embedding_gemma2_text": {**_FOUR, "num_kv_shared_layers": 0},
    "gemma4": {"audio_config": None},
    "dbrx": _DBRX,
    **dict.fromkeys(_LATENT_TYPES, _LATENT),
    "gemma4_unified_text": _FOUR,
    "bros": {
        "hidden_size": 64,
        **dict.fromkeys(("dim_bbox_projection", "dim_bbox_sinusoid_emb_1d", "dim_bbox_sinusoid_emb_2d")),
    },
    "layoutlmv3": {"coordinate_size": 8, "shape_size": 8, "input_size": 32},
    "helium": {"head_dim": 12},
    "stablelm": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "xmod": {"default_language": "en_XX"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": None},
}


def shrunken(model_type: str) -> hf.PretrainedConfig:
    """The default config of a type with every size made small."""
    kind = type(hf.AutoConfig.for_model(model_type))
    fields = _shrink(kind().to_dict(), model_type)
    fields.pop("model_type", None)
    return kind(**fields)


def _shrink(fields: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and name.endswith("config") and "model_type" in value:
            result[name] = _shrink(value, value["model_type"])
        elif name in _SHRUNKEN and value is not None and not isinstance(value, bool):
            result[name] = _SHRUNKEN[name]
        elif name in ("layer_types", "mlp_layer_types") and value:
            result[name] = [value[0], value[-1]]
        elif name != "transformers_version":
            result[name] = value
    needs = _NEEDS.get(model_type, {})
    if model_type in _THREE_AXES:
        head = result.get("head_dim") or result["hidden_size"] // result["num_attention_heads"]
        third, rest = divmod(int(head * (result["rope_parameters"].get("partial_rotary_factor") or 1)) // 2, 3)
        needs = {"rope_parameters": {**result["rope_parameters"], "mrope_section": [third + rest, third, third]}}
    return {name: value for name, value in {**result, **needs}.items() if name not in needs or value is not None}
