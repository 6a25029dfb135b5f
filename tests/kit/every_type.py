"""A tiny model of every type in the table: its class as published configs name it, and inputs for one forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.dbrx.configuration_dbrx import DbrxAttentionConfig

from ailora_tools.targets.architectures import BY_MODEL_TYPE

from .families import classes_of, shrunken

Inputs = dict[str, Tensor]
HIDDEN = 48

# The class for types that no auto class opens, or opens as a part of what is published.
_CLASSES = {
    "siglip_text_model": "SiglipTextModel",
    "blip": "BlipForConditionalGeneration",
    "blip_vision_model": "BlipVisionModel",
    "blip_2_vision_model": "Blip2VisionModel",
    "pop2piano": "Pop2PianoForConditionalGeneration",
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "metaclip_2": "MetaClip2Model",
    "speech_to_text": "Speech2TextForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
}
# Types that are proven here; timm is another library, proven in tests/models/test_vision.py.
PROVEN = sorted(kind for kind, row in BY_MODEL_TYPE.items() if row.proves(kind) and kind != "timm")
# Types that only published configs have -> that of the class which their `architectures` names.
ALIASES = {"kimi_k2": "deepseek_v3"}


def class_of(model_type: str) -> type[nn.Module]:
    """A class with a head where there is one; of encoder-decoders not the decoder alone."""
    if model_type in _CLASSES:
        return getattr(hf, _CLASSES[model_type])  # type: ignore[no-any-return]
    names = classes_of(ALIASES.get(model_type, model_type))
    whole = [name for name in names if name.endswith(("ForConditionalGeneration", "MTModel"))]
    return getattr(hf, (whole or names[1:] or names)[0])  # type: ignore[no-any-return]


def both_classes(model_type: str) -> list[type[nn.Module]]:
    """The body, where an auto class opens it, and that of `class_of`."""
    bodies = [getattr(hf, name) for name in classes_of(ALIASES.get(model_type, model_type))[:1]]
    return list(dict.fromkeys([*bodies, class_of(model_type)]))


def config_of(model_type: str) -> hf.PretrainedConfig:
    """Its default config with every size small."""
    config = shrunken(ALIASES.get(model_type, model_type))
    for name, value in _CHANGES.get(model_type, {}).items():
        setattr(config, name, value)
    return config


def build_type(model_type: str, kind: type[nn.Module] | None = None) -> nn.Module:
    """Every size small, the matrices large enough that no part of the model drowns in another."""
    torch.manual_seed(0)
    with without_timm(), torch.no_grad():
        model = (kind or class_of(model_type))(config_of(model_type)).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    return model


@contextmanager
def without_timm() -> Iterator[None]:
    """Towers of timm, which the tests do without, are left out of the models that have one beside the text tower."""
    from transformers.models.gemma3n import modeling_gemma3n as gemma3n

    whole = gemma3n.AutoModel.from_config

    def from_config(config: hf.PretrainedConfig, **options: object) -> nn.Module:
        return nn.Identity() if "vision" in config.model_type else whole(config, **options)

    with ExitStack() as stack:
        stack.enter_context(patch.object(gemma3n.AutoModel, "from_config", from_config))
        yield


@torch.no_grad()
def run(model: nn.Module, length: int = 6) -> Tensor:
    """One forward pass over `length` words (pictures and sound have their own number): one tensor of what it gives."""
    part = _PARTS.get(model.config.model_type, lambda whole: whole)(model)
    result = part(**sample(part, length))
    names = ("logits", "last_hidden_state", "image_embeds", "text_embeds", "start_logits")
    return torch.cat([result[name].flatten().double() for name in names if result.get(name) is not None])


def sample(model: nn.Module, length: int) -> Inputs:
    """Random words, boxes, pixels or sound, as the class takes them."""
    kind, takes = model.config.model_type, set(inspect.signature(model.forward).parameters)
    makers = _INPUTS.get(kind) or _INPUTS[model.main_input_name]
    inputs: Inputs = {}
    for make in makers:
        inputs.update(make(model, length))
    if "decoder_input_ids" in takes and model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _words(model, length)["input_ids"]
    if "bbox" in takes:
        box = torch.tensor([1, 2, 5, 6]).expand(1, length, 4)
        inputs["bbox"] = {"bros": box.repeat(1, 1, 2).float(), "udop": box / 10}.get(kind, box)
    return inputs


def _words(model: nn.Module, length: int) -> Inputs:
    return {"input_ids": torch.randint(3, 40, (1, length), generator=_random())}


def _pixels(model: nn.Module, length: int) -> Inputs:
    config = getattr(model.config, "vision_config", model.config)
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    return {"pixel_values": torch.randn(1, getattr(config, "num_channels", 3), size, size, generator=_random())}


def _patches(model: nn.Module, length: int) -> Inputs:
    """Pictures cut into patches beforehand."""
    config = getattr(model.config, "vision_config", model.config)
    values = torch.randn(1, 4, config.num_channels * config.patch_size**2, generator=_random())
    return {
        "pixel_values": values,
        "pixel_attention_mask": torch.ones(1, 4, dtype=torch.long),
        "spatial_shapes": torch.tensor([[2, 2]]),
    }


def _wave(model: nn.Module, length: int) -> Inputs:
    return {"input_values": torch.randn(1, 400, generator=_random())}


def _spectrogram(model: nn.Module, length: int) -> Inputs:
    config = model.config
    return {"input_values": torch.randn(1, config.max_length, config.num_mel_bins, generator=_random())}


def _mel(model: nn.Module, length: int) -> Inputs:
    config = model.config
    bins, frames = config.num_mel_bins, 2 * config.max_source_positions
    return {"input_features": torch.randn(1, bins, frames, generator=_random())}


def _filterbank(model: nn.Module, length: int) -> Inputs:
    bins = model.config.input_feat_per_channel * model.config.input_channels
    return {"input_features": torch.randn(1, 16, bins, generator=_random())}


def _encoded(model: nn.Module, length: int) -> Inputs:
    """What an encoder of another model would give."""
    width = model.config.cross_attention_hidden_size or model.config.d_model
    return {"encoder_hidden_states": torch.randn(1, 5, width, generator=_random())}


def _order(model: nn.Module, length: int) -> Inputs:
    """Which patches ViT-MAE keeps, drawn anew each time if not given."""
    count = (model.config.image_size // model.config.patch_size) ** 2
    return {"noise": torch.arange(count)[None].float()}


def _conditions(model: nn.Module, length: int) -> Inputs:
    return {"conditional_embeddings": torch.randn(1, model.config.projection_dim, generator=_random())}


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(1)


_Maker = Callable[[nn.Module, int], Inputs]
_INPUTS: Mapping[str, tuple[_Maker, ...]] = {
    "input_ids": (_words,),
    "pixel_values": (_pixels,),
    "input_values": (_wave,),
    "audio-spectrogram-transformer": (_spectrogram,),
    "blip": (_words, _pixels),
    "clip": (_words, _pixels),
    "clipseg": (_words, _pixels, _conditions),
    "metaclip_2": (_words, _pixels),
    "owlvit": (_words, _pixels),
    "owlv2": (_words, _pixels),
    "pop2piano": (_words,),
    "siglip": (_words, _pixels),
    "siglip2": (_words, _patches),
    "siglip2_vision_model": (_patches,),
    "speech_to_text": (_filterbank,),
    "trocr": (_words, _encoded),
    "vit_mae": (_pixels, _order),
    "whisper": (_mel,),
}  # fmt: skip
# What runs without a picture or a wave: Llama-4's class asks its text model for pictures (transformers 5.24).
_PARTS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "blip-2": lambda whole: whole.language_model,
    "llama4": lambda whole: whole.language_model,
    "qwen2_5_omni": lambda whole: whole.thinker,
    "qwen3_omni_moe": lambda whole: whole.thinker,
}
_CHANGES: Mapping[str, Mapping[str, object]] = {
    # Queries, keys and values that are clipped are no linear function of their weights.
    "dbrx": {"attn_config": DbrxAttentionConfig(kv_n_heads=2, clip_qkv=1e6, rope_theta=1e4)},
    "mistral3": {"text_config": shrunken("ministral3")},  # since Ministral 3; before it mistral
    "qwen2_5_omni": {"enable_audio_output": False},
    "qwen3_omni_moe": {"enable_audio_output": False},
}
