"""Starts that take nothing out of the base: step 0 is the base to the bit, on any base, in PEFT and in a trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.adapters import ALL, load_start
from kit.cards import run_card
from kit.checkpoints import tree
from kit.families import build, output
from kit.few_bits import write_quantised
from kit.peers import ON_ANY
from kit.spectra import worst_cosine
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM, Trainer, TrainingArguments

from ailora_tools import attach, check_start, freeze_a, freeze_b, initialize, verify
from ailora_tools.linalg.starts import STARTS
from ailora_tools.methods import METHODS

LEFT_ALONE = [name for name in ON_ANY if not METHODS[name].residual]
RIGHT = ["rlpo", "rlmo", "pica", "ailora-orthonormal"]  # A holds right singular vectors


def test_the_starts_of_right_singular_vectors_are_among_them() -> None:
    assert set(RIGHT) < set(LEFT_ALONE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert with a head"])
@pytest.mark.parametrize("method", LEFT_ALONE)
def test_step_zero_is_the_base_to_the_bit(method: str, name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    build(name).to(dtype).save_pretrained(tmp_path / "source")
    model = type(build(name)).from_pretrained(tmp_path / "source", dtype=dtype).eval()
    before, expected = tree(tmp_path / "source"), output(model, ALL[name].inputs())
    made = initialize(tmp_path / "source", 3, method=method, output=tmp_path / "out")
    assert tree(tmp_path / "source") == before and not (tmp_path / "out" / "config.json").exists()
    found = load_start(model, tmp_path / "out", tmp_path / "source")
    assert next(found.parameters()).dtype == dtype
    assert torch.equal(output(found, ALL[name].inputs()), expected)
    assert verify(made.folder).holds


@pytest.mark.parametrize("method", RIGHT)
def test_the_code_of_the_card_is_the_original_to_the_bit(method: str, tmp_path: Path) -> None:
    model = build("llama").eval()
    model.save_pretrained(tmp_path / "source")
    initialize(tmp_path / "source", 2, method=method, output=tmp_path / "out")
    found = run_card(tmp_path / "out")["model"].eval()
    assert torch.equal(output(found, ALL["llama"].inputs()), output(model, ALL["llama"].inputs()))


@pytest.mark.parametrize("form", ["NF4", "bitsandbytes INT8", "GPTQ 4", "FP8 blocks"])
def test_a_quantised_base_gives_its_directions_and_is_left_alone(form: str, tmp_path: Path) -> None:
    folder, expected, _, error = write_quantised(tmp_path / "few", form)
    before = tree(folder)
    made = initialize(folder, 4, method="ailora-orthonormal", output=tmp_path / "out")
    assert made.manifest is not None and verify(made.folder).holds and tree(folder) == before
    factors = load_file(made.adapter / "adapter_model.safetensors")
    for record in made.manifest.modules:
        A, B = (factors[f"base_model.model.{record.module}.lora_{side}.weight"].double() for side in "AB")
        Vh = torch.linalg.svd(expected[f"{record.module}.weight"].double(), full_matrices=False)[2]
        part = slice(0, 4) if record.role == "q" else slice(-4, None)
        assert not B.any() and worst_cosine(A.T, Vh[part].T) > 1 - 1e-4 - 100 * error


@pytest.mark.parametrize("method", RIGHT)
def test_four_bits_in_bitsandbytes_compute_the_same_with_it(method: str, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "source")
    made = initialize(tmp_path / "source", 3, method=method, output=tmp_path / "out")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = LlamaForCausalLM.from_pretrained(tmp_path / "source", quantization_config=bits).train()
    expected = output(base, ALL["llama"].inputs())
    found = PeftModel.from_pretrained(base, made.adapter).train()  # evaluation takes a kernel for rows in 32s
    assert attach(found, made.adapter) == 0  # there is nothing to take out
    assert torch.equal(output(found, ALL["llama"].inputs()), expected)


@pytest.mark.parametrize(("method", "freeze", "kept"), [("pica", freeze_a, "A"), ("mica", freeze_b, "B")])
def test_the_frozen_factor_keeps_its_bits_in_a_trainer_and_after_its_resume(
    method: str, freeze: Callable[[nn.Module, Path], int], kept: str, tmp_path: Path
) -> None:
    build("llama").save_pretrained(tmp_path / "source")
    made = initialize(tmp_path / "source", 3, method=method, output=tmp_path / "out")
    ids = torch.randint(3, 40, (8, 6), generator=torch.Generator().manual_seed(0)).tolist()
    start = load_file(made.adapter / "adapter_model.safetensors")
    for resume in (None, str(tmp_path / "run" / "checkpoint-1")):
        base = LlamaForCausalLM.from_pretrained(tmp_path / "source")
        model = PeftModel.from_pretrained(base, made.adapter, is_trainable=True)
        assert freeze(model, made.adapter) == check_start(model, made.adapter)
        asked = TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=2, save_steps=1, per_device_train_batch_size=4,
            learning_rate=1e-2, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=asked, train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train(resume_from_checkpoint=resume)
        trained = load_file(tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors")
        same = {key: torch.equal(trained[key], value) for key, value in start.items()}
        assert same == {key: f".lora_{kept}." in key for key in start}


sides, scales = st.integers(6, 40), st.sampled_from([1e-9, 1, 1e9])


@settings(max_examples=40, deadline=None)
@given(
    rows=sides, columns=sides, rank=st.integers(1, 6), seed=st.integers(0, 99), scale=st.sampled_from([1e-9, 1, 1e9])
)
def test_a_right_start_holds_the_directions_that_are_stretched_most_or_least(
    rows: int, columns: int, rank: int, seed: int, scale: float
) -> None:
    """Whatever the matrix: norm(W v) of its rows is the greatest, or the least, that any r directions can have."""
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    S = torch.linalg.svdvals(W)
    for rule, wanted in (("principal-right", S[:rank]), ("minor-right", S[-rank:])):
        found = STARTS[rule](W, rank, torch.Generator())
        assert not found.B.any() and not found.moved
        assert torch.allclose(found.A @ found.A.T, torch.eye(rank, dtype=torch.float64), atol=1e-10)
        assert torch.allclose(torch.linalg.svdvals(W @ found.A.T), wanted, atol=1e-6 * float(S[0]))
