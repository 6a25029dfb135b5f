"""On real weights: PEFT and transformers load what was written, and the model is the same."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.peers import ON_ANY
from kit.real_models import ROOT, first_layers, minilm, smollm2
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from ailora_tools import initialize, verify
from ailora_tools.verbs.initialization import Initialization

# Plain English that is always at hand; about a thousand tokens, so that the means below are steady.
LICENSE = (ROOT / "LICENSE").read_text()
TEXTS = [LICENSE[start : start + 700] for start in range(500, 5400, 700)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return minilm(tmp_path_factory.mktemp("minilm") / "minilm")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2(tmp_path_factory.mktemp("smollm2") / "smollm2-135m")


@dataclass(frozen=True)
class Original:
    """A model, its texts as it reads them, and what it computes of them in float32."""

    folder: Path
    batch: Any
    found: Tensor


@pytest.fixture(scope="module", params=[4, pytest.param(30, marks=pytest.mark.families)], ids="{} layers".format)
def layers(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Original:
    """SmolLM2 with so many of its 30 layers, in the bfloat16 of its shards."""
    folder, count = tmp_path_factory.mktemp("layers") / "model", request.param
    folder = llama if count == 30 else first_layers(llama, folder, count, torch.bfloat16)
    batch = tokens(folder, TEXTS[:2])  # the head of the model costs most, and no mean is taken
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Original(folder, batch, outputs(model, batch))


def tokens(folder: Path, texts: Sequence[str] = TEXTS) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer(texts, return_tensors="pt", padding=True)


@torch.no_grad()
def outputs(model: torch.nn.Module, batch: Any) -> Tensor:
    """The float64 outputs at the positions that are not padding."""
    result = model.eval()(**batch)
    values = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return values[batch["attention_mask"].bool()].double()


def off(found: Tensor, original: Tensor) -> float:
    return float((found - original).norm() / original.norm())


def loaded(result: Initialization, auto: Any, dtype: torch.dtype) -> PeftModel:
    return PeftModel.from_pretrained(auto.from_pretrained(result.folder, dtype=dtype), result.adapter)


def untouched_is_identical(result: Initialization, source: Path) -> bool:
    touched = {record.tensor for record in result.manifest.modules}
    for shard in source.glob("*.safetensors"):
        before, after = load_file(shard), load_file(result.folder / shard.name)
        if before.keys() != after.keys():
            return False
        if not all(torch.equal(before[name], after[name]) for name in before.keys() - touched):
            return False
    return True


@pytest.mark.parametrize("method", [*ON_ANY, "q=minor,k=principal,v=middle"])
def test_minilm_in_float32_computes_the_same(bert: Path, tmp_path: Path, method: str) -> None:
    batch = tokens(bert)
    original = outputs(AutoModel.from_pretrained(bert), batch)
    result = initialize(bert, 8, method=method, output=tmp_path / "out")
    moved = result.manifest.base
    base = AutoModel.from_pretrained(result.folder if moved else bert)
    alone = off(outputs(base, batch), original)
    model = PeftModel.from_pretrained(base, result.adapter)
    assert off(outputs(model, batch), original) <= (1e-5 if moved else 0.0)
    # Without its adapter the base has lost the principal components, and little without the minor ones.
    assert method not in ("ailora", "pissa") or alone > 1e-2
    assert method not in ("milora", "lora", "mica") or alone < 1e-2
    assert not moved or untouched_is_identical(result, bert)
    assert verify(result.folder).holds


@pytest.mark.parametrize("method", ON_ANY)
def test_smollm2_starts_by_every_method(layers: Original, tmp_path: Path, method: str) -> None:
    """With the residual in float32, so that only the method itself could be off. What NLoRA moves is larger than W."""
    result = initialize(layers.folder, 8, method=method, base_dtype="float32", output=tmp_path / "out")
    folder = result.folder if result.manifest.base else layers.folder
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert off(outputs(PeftModel.from_pretrained(base, result.adapter), layers.batch), layers.found) <= (
        1e-4 if method == "nlora" else 1e-5
    )
    assert verify(result.folder).holds


def test_minilm_as_bfloat16_keeps_its_minor_surgery(tmp_path: Path) -> None:
    """Square W^V in 16 bits: nearest rounding alone would undo it."""
    source = minilm(tmp_path / "minilm", torch.bfloat16)
    result = initialize(source, 8, output=tmp_path / "auto")
    assert all(record.survival >= 0.9 for record in result.manifest.modules)
    nearest = initialize(source, 8, rounding="nearest", output=tmp_path / "nearest").manifest.modules
    assert min(record.survival for record in nearest if record.role == "v") < 0.9
    compare_with_peft(source, AutoModel, ["query", "value"], [result])


def test_smollm2_in_bfloat16_is_no_further_off_than_peft(llama: Path, tmp_path: Path) -> None:
    results = [initialize(llama, 8, method=method, output=tmp_path / method) for method in ("ailora", "pissa")]
    compare_with_peft(llama, AutoModelForCausalLM, ["q_proj", "v_proj"], results)
    for result in results:
        assert untouched_is_identical(result, llama)
        assert all(record.survival >= 0.9 for record in result.manifest.modules)
        assert verify(result.folder).holds


def compare_with_peft(source: Path, auto: Any, targets: list[str], results: list[Initialization]) -> None:
    """Against PEFT's own PiSSA start of the same rank, from the same bfloat16 checkpoint.

    In float32 arithmetic only the stored numbers differ, and ours must be the closer ones. In bfloat16 the
    arithmetic itself is as far off as either start, so there the two can only be told to be alike.
    """
    batch = tokens(source)
    config = LoraConfig(r=8, lora_alpha=8, target_modules=targets, init_lora_weights="pissa")
    peft = get_peft_model(auto.from_pretrained(source, dtype=torch.bfloat16), config)
    for dtype, slack in ((torch.bfloat16, 1.05), (torch.float32, 1.0)):
        original = outputs(auto.from_pretrained(source, dtype=dtype), batch)
        theirs = off(outputs(peft.float() if dtype == torch.float32 else peft, batch), original)
        for result in results:
            assert off(outputs(loaded(result, auto, dtype), batch), original) <= slack * theirs


def test_a_float32_base_makes_smollm2_exact(llama: Path, tmp_path: Path) -> None:
    """With the residual kept in float32 only the factors' own rounding is left."""
    batch = tokens(llama)
    original = outputs(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), batch)
    result = initialize(llama, 8, base_dtype="float32", output=tmp_path / "out")
    assert off(outputs(loaded(result, AutoModelForCausalLM, torch.float32), batch), original) <= 1e-5
    assert verify(result.folder).holds


def test_pissa_is_what_peft_calls_pissa(bert: Path, tmp_path: Path) -> None:
    """Same recombined weight and, up to sign, the same factors as PEFT's exact SVD."""
    result = initialize(bert, 8, method="pissa", output=tmp_path / "out")
    ours = load_file(result.adapter / "adapter_model.safetensors")
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"], init_lora_weights="pissa")
    theirs = get_peft_model(copy.deepcopy(AutoModel.from_pretrained(bert)), config)
    for record in result.manifest.modules:
        layer = theirs.base_model.model.get_submodule(record.module)
        key = f"base_model.model.{record.module}"
        product = ours[f"{key}.lora_B.weight"].double() @ ours[f"{key}.lora_A.weight"].double()
        expected = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().double()
        # Its float32 SVD knows these directions to about eps / gap.
        assert off(product, expected) < 1e-6 / record.gap


def test_training_moves_only_the_adapter(bert: Path, tmp_path: Path) -> None:
    result = initialize(bert, 8, output=tmp_path / "out")
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(result.folder), result.adapter, is_trainable=True)
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert len(trainable) == 24 and all("lora_" in name for name in trainable)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], 1e-3)
    batch = tokens(bert)
    losses = []
    for _ in range(4):
        loss = model(**batch).last_hidden_state.square().mean()
        loss.backward()
        assert all(value.grad is not None and value.grad.any() for value in model.parameters() if value.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
