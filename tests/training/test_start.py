"""check_start: everything that it must tell, and nothing that is right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit.adapters import load_with_offset, train
from kit.families import build
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, BertForMaskedLM, BitsAndBytesConfig, LlamaForCausalLM

from ailora_tools import check_start, freeze_b, initialize, lr_groups, mask_fused_gradients, residualize
from ailora_tools.errors import CheckpointError, TargetError

MODULES = 4  # W^Q and W^V in two layers


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A Llama and its folders with a base and without one; a BERT with a head, and a half Llama."""
    root = tmp_path_factory.mktemp("start")
    build("llama").save_pretrained(root / "source")
    build("bert with a head").save_pretrained(root / "bert-source")
    build("llama").to(torch.bfloat16).save_pretrained(root / "half-source")
    for name in ("", "bert-", "half-"):
        initialize(root / f"{name}source", 3, output=root / f"{name}out")
    initialize(root / "source", 3, no_base=True, output=root / "two")
    initialize(root / "half-source", 3, no_base=True, output=root / "half-two")
    return SimpleNamespace(
        source=root / "source", out=root / "out", adapter=root / "out" / "ailora_init", two=root / "two",
        half_source=root / "half-source", half=root / "half-out", half_two=root / "half-two",
        bert=root / "bert-out", root=root,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PEFT's and transformers' warnings are what is turned into errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama(folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def loaded(base: Path, adapter: Path, dtype: torch.dtype = torch.float32, **options: object) -> PeftModel:
    return PeftModel.from_pretrained(llama(base, dtype), adapter, is_trainable=True, **options)


class Wrapped(nn.Module):
    """A parameter is called module.*, as under DDP."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def by_transformers(at: SimpleNamespace) -> nn.Module:
    model = llama(at.out)
    model.load_adapter(str(at.adapter), adapter_name="mine")
    return model


def residualized(source: Path, adapter: Path, dtype: torch.dtype) -> nn.Module:
    base = llama(source, dtype)
    residualize(base, adapter)
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)


def a_second_adapter(at: SimpleNamespace) -> nn.Module:
    model = loaded(at.out, at.adapter)
    model.add_adapter("more", LoraConfig(target_modules=["o_proj"]))
    return model


def four_bits() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


RIGHT: dict[str, Callable[[SimpleNamespace], nn.Module]] = {
    "PEFT": lambda at: loaded(at.out, at.adapter),
    "under another name": lambda at: loaded(at.out, at.adapter, adapter_name="mine"),
    "transformers": by_transformers,
    "beside a second adapter": a_second_adapter,
    "in bfloat16": lambda at: loaded(at.out, at.adapter, torch.bfloat16),
    "in float16": lambda at: loaded(at.out, at.adapter, torch.float16),
    "all of it cast to 16 bits and back": lambda at: loaded(at.out, at.adapter).bfloat16().float(),
    "compiled": lambda at: torch.compile(loaded(at.out, at.adapter)),
    "wrapped": lambda at: Wrapped(loaded(at.out, at.adapter)),
    "compiled in a wrapper": lambda at: Wrapped(torch.compile(loaded(at.out, at.adapter))),
    "residualised in memory": lambda at: residualized(at.source, at.adapter, torch.float32),
    "residualised in 16 bits": lambda at: residualized(at.source, at.adapter, torch.bfloat16),
    "quantised": lambda at: PeftModel.from_pretrained(llama(at.out, quantization_config=four_bits()), at.adapter),
    "on the meta device": lambda at: loaded(at.out, at.adapter).to("meta"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_start_that_arrived_is_right(name: str, at: SimpleNamespace) -> None:
    assert check_start(RIGHT[name](at), at.adapter) == MODULES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_a_half_precision_base_is_right_in_any_dtype(dtype: torch.dtype, at: SimpleNamespace) -> None:
    adapter = at.half / "ailora_init"
    assert check_start(loaded(at.half, adapter, dtype), adapter) == MODULES
    with pytest.raises(TargetError, match="the original weights"):
        check_start(loaded(at.half_source, adapter, dtype), adapter)


def test_two_adapters_are_right_on_the_original(at: SimpleNamespace) -> None:
    adapter, half = at.two / "ailora_init", at.half_two / "ailora_init"
    assert check_start(load_with_offset(llama(at.source), at.two), adapter) == MODULES
    assert check_start(load_with_offset(llama(at.source, torch.bfloat16), at.two), adapter) == MODULES
    assert check_start(load_with_offset(llama(at.source, quantization_config=four_bits()), at.two), adapter) == MODULES
    assert check_start(residualized(at.source, adapter, torch.float32), adapter) == MODULES, "instead of the offset"
    assert check_start(residualized(at.half_source, half, torch.bfloat16), half) == MODULES


def bert_body(at: SimpleNamespace) -> nn.Module:
    """The class that the card named once."""
    return PeftModel.from_pretrained(AutoModel.from_pretrained(at.bert), at.bert / "ailora_init", is_trainable=True)


def bert_of_random_lora(at: SimpleNamespace) -> nn.Module:
    base = BertForMaskedLM.from_pretrained(at.bert)
    return get_peft_model(base, LoraConfig(r=3, lora_alpha=3, target_modules=["query", "value"]))


def with_more(at: SimpleNamespace) -> nn.Module:
    config = LoraConfig.from_pretrained(at.bert / "ailora_init")
    config.target_modules = ["query", "value", "key"]
    base = BertForMaskedLM.from_pretrained(at.bert)
    return PeftModel.from_pretrained(base, at.bert / "ailora_init", config=config, is_trainable=True)


NEVER: dict[str, tuple[Callable[[SimpleNamespace], nn.Module], str]] = {
    "no adapter": (lambda at: BertForMaskedLM.from_pretrained(at.bert), "no LoRA on bert.encoder.layer.0"),
    "another class": (bert_body, "no LoRA on bert.*has LoRA on encoder.layer.0"),
    "a random start": (bert_of_random_lora, "a random LoRA on bert.encoder.layer.0.attention.self.query"),
    "LoRA on more modules": (with_more, r"has LoRA on bert\.encoder\.layer\.0\.attention\.self\.key"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_did_not_arrive_is_told_by_all_that_take_the_folder(name: str, at: SimpleNamespace) -> None:
    """PEFT only warns of it."""
    load, text = NEVER[name]
    model, adapter = load(at), at.bert / "ailora_init"
    calls = (check_start, lambda *one: lr_groups(*one, lr=1e-3), freeze_b, mask_fused_gradients)
    for call in calls:
        with pytest.raises(TargetError, match=text):
            call(model, adapter)


def shaken(at: SimpleNamespace, part: str) -> nn.Module:
    model = loaded(at.out, at.adapter)
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if part in name).mul_(1.001)
    return model


def inactive(at: SimpleNamespace) -> nn.Module:
    model = loaded(at.out, at.adapter)
    model.add_adapter("more", LoraConfig(target_modules=["q_proj"]))
    model.set_adapter("more")
    return model


def scaled(at: SimpleNamespace) -> nn.Module:
    config = LoraConfig.from_pretrained(at.adapter)
    config.lora_alpha = 6
    return PeftModel.from_pretrained(llama(at.out), at.adapter, config=config, is_trainable=True)


def trained(at: SimpleNamespace) -> nn.Module:
    model = loaded(at.out, at.adapter)
    train(model, "llama", steps=1)
    return model


def an_offset_switched_off(at: SimpleNamespace) -> nn.Module:
    model = load_with_offset(llama(at.source), at.two)
    model.set_adapter("default")
    return model


WRONG: dict[str, tuple[Callable[[SimpleNamespace], nn.Module], str, str]] = {
    "the original": (lambda at: loaded(at.source, at.adapter), "out", "the original weights in model.layers.0"),
    "the original in 16 bits": (
        lambda at: loaded(at.source, at.adapter, torch.bfloat16), "out", "the original weights in model.layers.0",
    ),
    "another base": (lambda at: shaken(at, "q_proj.base_layer"), "out", "neither the original nor its residual"),
    "one factor": (lambda at: shaken(at, "v_proj.lora_A"), "out", "v_proj.lora_A differ from the file"),
    "after training": (trained, "out", "differ from the file .trained since"),
    "another scaling": (scaled, "out", "another scaling on .*2 instead of 1"),
    "not active": (inactive, "out", "not active on model.layers.0"),
    "without the offset": (
        lambda at: loaded(at.source, at.two / "ailora_init"), "two", "the offset is not there or not active",
    ),
    "the offset switched off": (an_offset_switched_off, "two", "the offset is not there or not active"),
    "the offset on a residual": (
        lambda at: load_with_offset(llama(at.out), at.two), "two", "neither the original nor its residual",
    ),
    "quantised without the offset": (
        lambda at: PeftModel.from_pretrained(llama(at.source, quantization_config=four_bits()), at.two / "ailora_init"),
        "two", "quantised weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_the_start_is_told(name: str, at: SimpleNamespace) -> None:
    load, folder, text = WRONG[name]
    with pytest.raises(TargetError, match=text):
        check_start(load(at), at.root / folder / "ailora_init")


@pytest.mark.parametrize("kind", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_a_tensor_that_the_file_has_lost_is_told(kind: str, at: SimpleNamespace, tmp_path: Path) -> None:
    """As by a copy that broke off, loaded by PEFT with a warning; the folder itself is whole."""
    made = initialize(at.source, 3, dora=True, output=tmp_path / "out")
    path = made.adapter / "adapter_model.safetensors"
    whole, lost = path.read_bytes(), load_file(path)
    del lost[next(name for name in lost if kind in name)]
    save_file(lost, path, {"format": "pt"})
    model = loaded(made.folder, made.adapter)
    path.write_bytes(whole)
    with pytest.raises(TargetError, match=r"model\.layers\.0\.self_attn\.q_proj"):
        check_start(model, made.adapter)


def test_resumed_training_has_its_groups_and_is_no_start(at: SimpleNamespace, tmp_path: Path) -> None:
    trained(at).save_pretrained(tmp_path / "checkpoint")
    resumed = loaded(at.out, tmp_path / "checkpoint")
    assert len(lr_groups(resumed, at.adapter, lr=1e-3)) == 2
    assert freeze_b(resumed, at.adapter) == 0 and mask_fused_gradients(resumed, at.adapter) == []
    with pytest.raises(TargetError, match="differ from the file"):
        check_start(resumed, at.adapter)


def test_a_folder_without_a_manifest_is_named(at: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ailora\.json"):
        check_start(loaded(at.out, at.adapter), tmp_path / "ailora_init")
