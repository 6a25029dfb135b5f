"""With which versions of transformers the names of modules are proven, type by type.

`make versions` puts the question of `module_tree` to the classes of the last release of every version named here, for a
file that the newest one has saved and for one that the version saves itself. A type holds where all of the modules are
there, and nothing besides is hit. What is not stated here is asked of the class when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

VERSIONS = (*(f"4.{minor}" for minor in range(55, 58)), *(f"5.{minor}" for minor in range(25)))

# From one version to another -> the types that hold in all of them. Types inside a type of the table stand here, too.
PROVEN: Mapping[str, str] = {
    "4.55-4.57 5.2-5.24":
        "llama4",
    "4.55-4.57 5.4-5.24":
        "camembert",
    "4.55-4.57 5.9-5.24":
        "audio-spectrogram-transformer beit deit ijepa vit vit_mae vit_msn",
    "4.55-4.57 5.18-5.24":
        "dinov2 dinov2_with_registers",
    "4.55-4.57 5.21-5.24":
        "qwen2_5_omni",
    "4.55-5.3 5.5-5.24":
        "aya_vision big_bird cohere2 cohere2_vision ernie4_5 ernie4_5_moe falcon_h1 m2m_100 mbart mvp olmo olmo2 "
        "olmoe phimoe",
    "4.55-5.3 5.17-5.24":
        "modernbert",
    "4.55-5.24":
        "albert arcee aria aria_text bamba bart bert bert-generation biogpt bitnet blenderbot blenderbot-small "
        "blip blip_2_vision_model blip_vision_model bloom bros clip clipseg clipseg_text_model "
        "clipseg_vision_model codegen cohere convbert data2vec-audio data2vec-text deberta deberta-v2 deepseek_v2 "
        "deepseek_v3 deepseek_vl deepseek_vl_hybrid diffllama distilbert doge dots1 electra ernie esm exaone4 "
        "falcon flaubert fuyu gemma gemma2 gemma3 gemma3_text gemma3n glm glm4 glm4_moe glm4v glm4v_text got_ocr2 "
        "gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoeshared "
        "helium hubert idefics2 idefics3 imagegpt internvl jamba janus kimi_k2 layoutlm layoutlmv3 lfm2 lilt llama "
        "llama4_text llava llava_next llava_next_video llava_onevision longt5 luke marian markuplm megatron-bert "
        "mistral mixtral mobilebert mpnet mpt mt5 nemotron nllb-moe nystromformer openai-gpt opt owlv2 "
        "owlv2_text_model owlv2_vision_model owlvit owlvit_text_model owlvit_vision_model paligemma pegasus "
        "pegasus_x persimmon phi phi3 plbart pop2piano qwen2 qwen2_5_vl qwen2_5_vl_text qwen2_moe qwen2_vl "
        "qwen2_vl_text qwen3 qwen3_moe rembert roberta roberta-prelayernorm roc_bert sew sew-d siglip siglip2 "
        "siglip2_text_model smollm3 smolvlm speech_to_text splinter stablelm starcoder2 switch_transformers t5 "
        "tapas timm trocr udop umt5 unispeech unispeech-sat video_llava vipllava visual_bert wav2vec2 whisper xglm "
        "xlm xlm-roberta xlm-roberta-xl xmod yoso",
    "4.56-5.24":
        "glm4v_moe glm4v_moe_text hunyuan_v1_dense hunyuan_v1_moe metaclip_2 metaclip_2_text_model "
        "metaclip_2_vision_model ovis2 seed_oss",
    "4.57-5.3 5.5-5.24":
        "olmo3",
    "4.57-5.24":
        "flex_olmo lfm2_vl ministral qwen3_next vaultgemma",
    "5.0-5.3 5.5-5.24":
        "paddleocr_vl paddleocr_vl_text",
    "5.0-5.24":
        "afmoe cwm glm46v glm4_moe_lite jais2 lfm2_moe minimax_m2 ministral3 mllama mllama_text_model nanochat "
        "qwen3_vl qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text solar_open video_llama_3",
    "5.1-5.24":
        "apertus exaone_moe glm_ocr glm_ocr_text youtu",
    "5.2-5.3 5.18-5.24":
        "glm_moe_dsa",
    "5.2-5.24":
        "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text",
    "5.3-5.3 5.5-5.24":
        "eurobert",
    "5.3-5.24":
        "higgs_audio_v2 olmo_hybrid",
    "5.4-5.24":
        "mistral4",
    "5.5-5.13 5.15-5.24":
        "gemma4",
    "5.6-5.24":
        "clip_text_model clip_vision_model gemma3n_text hy_v3 siglip2_vision_model siglip_text_model "
        "siglip_vision_model",
    "5.7-5.24":
        "minicpmv4_6",
    "5.8-5.24":
        "exaone4_5",
    "5.9-5.24":
        "cohere2_moe hyperclovax",
    "5.10-5.13 5.15-5.24":
        "gemma4_unified gemma4_unified_text",
    "5.10-5.24":
        "audioflamingo3 glmasr granite_speech granite_speech_plus mellum musicflamingo qwen2_audio voxtral",
    "5.12-5.24":
        "minimax_m3_vl minimax_m3_vl_text",
    "5.13-5.24":
        "granitemoehybrid mimo_v2_flash minicpm3 qwen3_asr",
    "5.14-5.24":
        "inkling_text",
    "5.15-5.24":
        "axk1 gemma4_text muse_glimmer_text",
    "5.17-5.24":
        "kimi_k25 lighton_ocr mistral3",
    "5.18-5.24":
        "deepseek_v32 hyperclovax_vision_v2",
    "5.19-5.24":
        "embedding_gemma2 embedding_gemma2_text",
    "5.20-5.24":
        "beam dbrx kolibri1 muse_spark_text",
    "5.21-5.24":
        "qwen2_5_omni_text qwen2_5_omni_thinker qwen3_omni_moe qwen3_omni_moe_text qwen3_omni_moe_thinker",
    "5.23-5.24":
        "granite_docling_text",
    "5.24-5.24":
        "apertus1p5_text lara_mini",
}  # fmt: skip


def _between(ranges: str) -> Iterator[str]:
    for text in ranges.split():
        first, _, last = text.partition("-")
        yield from VERSIONS[VERSIONS.index(first) : VERSIONS.index(last) + 1]


_HELD = {kind: frozenset(_between(ranges)) for ranges, kinds in PROVEN.items() for kind in kinds.split()}
_RELEASE = re.compile(r"(\d+\.\d+)(\.\d+)?")  # no release candidate, and nothing under development


def proven_with(release: str, types: Collection[str]) -> bool:
    """Whether the names are proven for all of these model types in that release of transformers ("5.17.0")."""
    stated = _RELEASE.fullmatch(release)
    return stated is not None and stated[1] in proven_versions(types)


def proven_versions(types: Collection[str]) -> list[str]:
    """The versions that the names of all of these model types are proven with, the oldest first."""
    held = [_HELD.get(kind, frozenset()) for kind in types]
    return [minor for minor in VERSIONS if held and all(minor in one for one in held)]
