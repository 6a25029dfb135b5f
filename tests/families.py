"""Tiny random models of real transformers classes, one a family: what the table of architectures is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

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
    model = FAMILIES[name].build().eval()
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
    names = ("logits", "last_hidden_state", "image_embeds", "text_embeds", "logits_per_text")
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


def _whisper() -> nn.Module:
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(**{**_BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16})
    )


def _whisper_inputs() -> Inputs:
    sound = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    return {"input_features": sound, "decoder_input_ids": _words(5)["input_ids"]}


def _clip(model: type, config: type) -> nn.Module:
    return model(config(text_config={**_TEXT, "eos_token_id": 2}, vision_config=_VISION, projection_dim=20))


def _llava() -> nn.Module:
    text, vision = hf.LlamaConfig(**_GROUPED), hf.CLIPVisionConfig(**_VISION)
    return hf.LlavaForConditionalGeneration(hf.LlavaConfig(text_config=text, vision_config=vision))


def _gemma3() -> nn.Module:
    text = hf.Gemma3TextConfig(**{**_GROUPED, "num_key_value_heads": 1, "head_dim": 10})
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config=hf.SiglipVisionConfig(**_VISION), mm_tokens_per_image=4)
    )


def _qwen2_vl() -> nn.Module:
    text = {**_GROUPED, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 4, "hidden_size": _HIDDEN}
    return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(text_config=text, vision_config=vision))


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
    "whisper": Family(_whisper, _whisper_inputs, None),
    "clip": Family(lambda: _clip(hf.CLIPModel, hf.CLIPConfig), lambda: {**_words(), **_image()}, None),
    "siglip": Family(
        lambda: hf.SiglipModel(hf.SiglipConfig(text_config=_TEXT, vision_config=_VISION)),
        lambda: {**_words(), **_image()},
        None,
    ),
    "clip text": _encoder(hf.CLIPTextModel, hf.CLIPTextConfig, eos_token_id=2),
    "clip vision": _vision(hf.CLIPVisionModel, hf.CLIPVisionConfig),
    "vit": _vision(hf.ViTForImageClassification, hf.ViTConfig),
    "deit": _vision(hf.DeiTForImageClassification, hf.DeiTConfig),
    "beit": _vision(hf.BeitForImageClassification, hf.BeitConfig),
    "dinov2": _vision(hf.Dinov2ForImageClassification, hf.Dinov2Config),
    "wav2vec2": Family(lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**_SOUND_SIZES)), _sound, None),
    "hubert": Family(lambda: hf.HubertForCTC(hf.HubertConfig(**_SOUND_SIZES)), _sound, None),
    "llava, text tower": Family(_llava, _words, _word),
    "gemma3, text tower": Family(_gemma3, _words, _word),
    "qwen2-vl, text tower": Family(_qwen2_vl, _words, _word),
}  # fmt: skip
