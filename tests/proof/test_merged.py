"""`verify` of merged models: right ones hold whoever made them, and each mistake is told for what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.merge_faults import FAULTS, Fault
from kit.merges import (
    EMBEDDING,
    HEAD,
    Case,
    Q,
    Tensors,
    V,
    damaged,
    edit,
    make_case,
    merged_by_peft,
    write_adapter,
    write_base,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools import initialize, merge, verify
from ailora_tools.errors import CheckpointError, OptionError
from ailora_tools.verbs.verify import Verification

KINDS = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 64}},
    "a head beside": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "biases of B": {"target_modules": ["q_proj"]},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def failed(result: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in result.checks if not check.holds}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """A case by the kind of its adapter and the dtype of its base, made when it is first asked for."""
    made: dict[tuple[str, str], Case] = {}

    def case(kind: str = "LoRA", dtype: str = "float32") -> Case:
        if (kind, dtype) not in made:
            folder = tmp_path_factory.mktemp("case")
            made[kind, dtype] = make_case(folder, DTYPES[dtype], **KINDS[kind])
        return made[kind, dtype]

    return case


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_merge_wrote_holds_without_a_word_of_what_it_was_made_from(
    kind: str, dtype: str, cases: Callable[..., Case]
) -> None:
    found = verify(cases(kind, dtype).merged)
    assert found.holds and found.what == "merged", failed(found)
    assert {check.name for check in found.checks} >= {"files", "merged", "untouched", "differs from the base"}


@pytest.mark.parametrize("loaded", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "patterns", "embeddings"])
def test_what_peft_merged_holds_in_every_dtype(
    kind: str, stored: str, loaded: str, cases: Callable[..., Case], tmp_path: Path
) -> None:
    """A base that is loaded in a narrower dtype is rounded as a whole; safe merging rounds s B A before it is added, an
    adapter that is not cast rounds its factors."""
    case = cases(kind, stored)
    for safe, cast in ((False, True), (True, False)):
        out = merged_by_peft(case.base, case.adapter, tmp_path / f"{safe}", DTYPES[loaded], safe, cast)
        found = verify(out, base=case.base, adapter=case.adapter)
        assert found.holds, (safe, failed(found))


@pytest.mark.parametrize("working", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_mergekit_merged_holds(working: str, dtype: str, cases: Callable[..., Case], tmp_path: Path) -> None:
    """mergekit 0.1.5, `model+lora` (mergekit/common.py, ModelReference.merged): PEFT's merge_and_unload on a model
    loaded in `lora_merge_dtype`, saved; then every tensor is cast to the `dtype` of the recipe, here passthrough."""
    case = cases()
    out = merged_by_peft(case.base, case.adapter, tmp_path / "merged", DTYPES[working], safe=False)
    cast = {name: value.to(DTYPES[dtype]) for name, value in load_file(out / "model.safetensors").items()}
    save_file(cast, out / "model.safetensors", {"format": "pt"})
    found = verify(out, base=case.base, adapter=case.adapter)
    narrower = working != "float32" and dtype != working
    assert found.holds != narrower, failed(found)
    if narrower:  # it is not base plus adapter to the rounding of what it is stored in, and that is told
        assert failed(found).keys() <= {"merged", "untouched"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_mistake_is_told(fault: Fault, cases: Callable[..., Case], tmp_path: Path) -> None:
    case = cases()
    found = verify(damaged(case, tmp_path / "merged", fault.change), base=case.base, adapter=case.adapter)
    assert not found.holds
    assert fault.words in failed(found)[fault.check], failed(found)


IN_16_BITS = ("a_module_is_missing", "it_is_in_it_twice", "q_and_v_are_swapped", "two_layers_are_swapped",
              "alpha_without_r", "it_is_transposed", "the_base_itself")  # fmt: skip


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.name in IN_16_BITS], ids=lambda fault: fault.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_they_are_told_in_16_bits_too(fault: Fault, dtype: str, cases: Callable[..., Case], tmp_path: Path) -> None:
    case = cases("LoRA", dtype)

    def rounded(M: Tensors, W: Tensors, D: dict[str, Tensor]) -> Any:
        told = fault.change(M, W, D)
        M.update({name: value.to(DTYPES[dtype]) for name, value in M.items()})
        return told

    found = verify(damaged(case, tmp_path / "merged", rounded), base=case.base, adapter=case.adapter)
    assert fault.words in failed(found)[fault.check], failed(found)


def test_some_of_the_components_are_told_from_all(cases: Callable[..., Case], tmp_path: Path) -> None:
    case = cases()

    def two_of_four(M: Tensors, W: Tensors, D: dict[str, Tensor]) -> None:
        A, B = factors(case.adapter, Q[0])
        M[Q[0]] = W[Q[0]] + 2 * B[:, :2] @ A[:2]

    found = verify(damaged(case, tmp_path / "merged", two_of_four), base=case.base, adapter=case.adapter)
    assert "has 2 of the adapter's 4 components: another rank" in failed(found)["merged"]


def factors(adapter: Path, tensor: str) -> tuple[Tensor, Tensor]:
    held = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.{tensor.removesuffix('.weight')}"
    return held[f"{stem}.lora_A.weight"], held[f"{stem}.lora_B.weight"]


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("patterns", lambda M, W, D: {V[0]: W[V[0]] + 2 * D[V[0]]}, "(alpha_pattern left out)"),
        ("patterns", lambda M, W, D: {Q[0]: W[Q[0]] + 2 * D[Q[0]]}, "(rank_pattern left out)"),
        ("rsLoRA", lambda M, W, D: {Q[0]: W[Q[0]] + 2 * D[Q[0]]}, "(alpha / r without rsLoRA's root)"),
        ("DoRA", lambda M, W, D: {Q[0]: W[Q[0]] + 2 * D[Q[0]]}, "and not its magnitudes (DoRA)"),
        ("a head beside", lambda M, W, D: {HEAD: W[HEAD]}, f"{HEAD} is the base's: the adapter is not in it"),
        ("embeddings", lambda M, W, D: {EMBEDDING: W[EMBEDDING]}, f"{EMBEDDING} is the base's"),
    ],
)
def test_mistakes_with_other_kinds_of_adapters_are_told(
    kind: str, change: Callable[..., Tensors], words: str, cases: Callable[..., Case], tmp_path: Path
) -> None:
    case = cases(kind)
    out = damaged(case, tmp_path / "merged", lambda M, W, D: M.update(change(M, W, D)))
    found = verify(out, base=case.base, adapter=case.adapter)
    assert words in failed(found)["merged"], failed(found)


def test_an_adapter_that_changes_nothing_makes_the_base(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base)
    held = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: value * (".lora_A" in name) for name, value in held.items()}, adapter / "adapter_model.safetensors"
    )
    merge(base, adapter, tmp_path / "merged")
    found = failed(verify(tmp_path / "merged"))
    assert found == {
        "differs from the base": "it is the base: the adapter changes nothing: A or B is zero in every module"
    }


def test_a_change_below_the_rounding_of_the_base_makes_the_base(tmp_path: Path) -> None:
    """The arithmetic is right, and nothing of the training is in the model."""
    base = write_base(tmp_path / "base", torch.bfloat16)
    adapter = write_adapter(tmp_path / "adapter", base)
    held = load_file(adapter / "adapter_model.safetensors")
    shrunk = {name: value * (1e-9 if ".lora_B" in name else 1) for name, value in held.items()}
    save_file(shrunk, adapter / "adapter_model.safetensors")
    merge(base, adapter, tmp_path / "merged")
    found = failed(verify(tmp_path / "merged"))
    assert found.keys() == {"differs from the base"} and "merge in float32" in found["differs from the base"]
    assert verify(merge(base, adapter, tmp_path / "wide", base_dtype="float32").folder).holds


def test_the_wrong_base_is_told_before_any_number(cases: Callable[..., Case], tmp_path: Path) -> None:
    case, other = cases(), write_base(tmp_path / "other", seed=5)
    found = failed(verify(case.merged, base=other))
    assert "another model" in found["merged"] and "is not the base's" in found["untouched"]


def test_a_model_saved_with_its_adapter_beside_is_refused(cases: Callable[..., Case], tmp_path: Path) -> None:
    case = cases()
    out = damaged(
        case, tmp_path / "merged", lambda M, W, D: M.update({f"{Q[0][:-7]}.lora_A.weight": torch.ones(4, 64)})
    )
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        verify(out, base=case.base, adapter=case.adapter)


def test_an_adapter_for_another_model_is_told(cases: Callable[..., Case], tmp_path: Path) -> None:
    small = write_base(tmp_path / "small", hidden_size=32)
    found = failed(verify(cases().merged, base=small))
    assert "has shape" in found["adapter"]


def test_a_file_that_was_changed_taken_or_added_is_told(cases: Callable[..., Case], tmp_path: Path) -> None:
    for number, (name, act, check) in enumerate(
        [
            ("generation_config.json", lambda path: path.write_text("{}"), "companions"),
            ("generation_config.json", lambda path: path.unlink(), "files"),
            ("modeling_llama.py", lambda path: path.write_text("pass"), "files"),
        ]
    ):
        out = tmp_path / f"{number}"
        shutil.copytree(cases().merged, out)
        act(out / name)
        assert check in failed(verify(out))


def test_without_base_or_adapter_at_hand_it_is_asked_for_them(cases: Callable[..., Case], tmp_path: Path) -> None:
    shutil.copytree(cases().merged, tmp_path / "merged")
    edit(
        tmp_path / "merged/ailora-result.json",
        {"adapter": "/nowhere", "base": {"location": "hf://org/x", "revision": "c"}},
    )
    with pytest.raises(OptionError, match="--base and --adapter"):
        verify(tmp_path / "merged")


def test_a_tied_head_may_be_left_out_and_one_of_its_own_may_not(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = write_adapter(tmp_path / "adapter", base)
    both = load_file(base / "model.safetensors")
    save_file({**both, HEAD: both[EMBEDDING].clone()}, base / "model.safetensors", {"format": "pt"})
    out = merged_by_peft(base, adapter, tmp_path / "merged", torch.float32, safe=False)
    assert HEAD not in load_file(out / "model.safetensors")
    found = verify(out, base=base, adapter=adapter)
    assert found.holds and any(HEAD in check.detail for check in found.checks)
    edit(out / "config.json", {"tie_word_embeddings": False})
    assert HEAD in failed(verify(out, base=base, adapter=adapter))["tensors"]


def test_shards_and_a_wider_type_hold(tmp_path: Path) -> None:
    """The index is another one then: it states the sum of bytes."""
    tensors = llama_tensors()
    base = write_checkpoint(tmp_path / "base", tensors, shards=3)
    start = initialize(base, 2, method="lora", output=tmp_path / "start")
    held = load_file(start.adapter / "adapter_model.safetensors")
    filled = {name: W + 0.05 * torch.ones_like(W) for name, W in held.items()}
    save_file(filled, start.adapter / "adapter_model.safetensors", {"format": "pt"})
    merge(base, start.adapter, tmp_path / "merged", base_dtype="float32")
    found = verify(tmp_path / "merged")
    assert found.holds, failed(found)
    assert "4 of BF16 stored as F32" in {check.name: check.detail for check in found.checks}["number types"]


def test_json_tells_of_every_tensor(cases: Callable[..., Case]) -> None:
    told = json.loads(json.dumps(verify(cases().merged).to_json(), allow_nan=False))
    by_name = {one["tensor"]: one for one in told["matrices"]}
    assert by_name.keys() == load_file(cases().merged / "model.safetensors").keys()
    assert {name for name, one in by_name.items() if one["touched"]} == {*Q, *V}
    assert all(
        one["excess"] <= 1 and one["share"] == pytest.approx(1, abs=1e-3) for one in by_name.values() if one["touched"]
    )
