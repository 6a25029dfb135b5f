"""`init --grid`: a residual that `load_in_4bit` gives back bit for bit, and an adapter with what the grid lost."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from kit.families import FAMILIES, build, output
from kit.real_models import minilm, smollm2
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from ailora_tools import convert, initialize, merge, residualize, verify
from ailora_tools.errors import OptionError, TargetError
from ailora_tools.linalg.grid import BLOCK, GRIDS, on_grid
from ailora_tools.output.manifest import Manifest, ModuleRecord
from ailora_tools.surgery import settings


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def there_and_back(W: Tensor, kind: str) -> Tensor:
    """As bitsandbytes quantises and gives back."""
    packed, state = bnb.quantize_4bit(W.contiguous(), quant_type=kind, blocksize=64)
    found: Tensor = bnb.dequantize_4bit(packed, state)
    return found


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("columns", [128, 100])
def test_the_grid_is_that_of_bitsandbytes(kind: str, dtype: torch.dtype, columns: int) -> None:
    """Where rows are no multiple of 64, blocks reach from one into the next, and the last one is short."""
    W = matrix(37, columns).to(dtype)
    found = on_grid(W, kind)
    assert torch.equal(found, there_and_back(W, kind)) and torch.equal(on_grid(found, kind), found)
    assert found.dtype == dtype and not torch.equal(found, W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", GRIDS)
def test_what_lies_on_it_stays_also_among_the_smallest_numbers(kind: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    for size in (64 * tiny, tiny, tiny / 8):
        W = (matrix(64, 64) * 20 * size).to(dtype)
        W[:3] = 0
        found = on_grid(W, kind)
        assert torch.equal(on_grid(found, kind), found) and not found[:3].any()


def test_both_places_that_name_the_grids_agree() -> None:
    assert tuple(GRIDS) == settings.GRIDS and settings.GRID_BLOCK == BLOCK


def loop(W: Tensor, rank: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Q and B A after so many rounds, with the functions of bitsandbytes and a full SVD."""
    Q = torch.zeros_like(W)
    for _ in range(rounds):
        U, S, Vh = torch.linalg.svd(W.double() - Q.double(), full_matrices=False)
        BA = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        Q = there_and_back((W.double() - BA).float(), "nf4")
    return Q, BA


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return minilm(tmp_path_factory.mktemp("mini") / "model")


def made(source: Path, folder: Path, rank: int, **options: Any) -> Manifest:
    found = initialize(source, rank, output=folder, **{"grid": "nf4", **options}).manifest
    assert found is not None
    return found


def ratios(manifest: Manifest, role: str) -> list[float]:
    return [(one.grid_error or 0) / (one.plain_error or 1) for one in manifest.modules if one.role == role]


def median(values: list[float]) -> float:
    return float(torch.tensor(values).median())


@pytest.mark.parametrize(("rank", "expected"), [(8, 0.85), (32, 0.62)])
def test_the_error_is_below_that_of_plain_nf4(rank: int, expected: float, mini: Path, tmp_path: Path) -> None:
    manifest = made(mini, tmp_path / "out", rank, method="pissa")
    for role in "qv":
        assert max(ratios(manifest, role)) < 1 and abs(median(ratios(manifest, role)) - expected) < 0.015
    assert all(one.rounds == 5 and 0.08 < (one.plain_error or 0) < 0.1 for one in manifest.modules)
    assert verify(tmp_path / "out").holds


def test_it_is_the_loop_written_with_bitsandbytes(mini: Path, tmp_path: Path) -> None:
    record = made(mini, tmp_path / "out", 8, method="pissa", layers="0").modules[0]
    W = load_file(mini / "model.safetensors")[record.tensor]
    Q, BA = loop(W, 8, 5)
    expected = (W.double() - Q.double() - BA).norm() / W.double().norm()
    assert record.grid_error == pytest.approx(float(expected), rel=2e-3)
    assert record.plain_error == pytest.approx(float((W - there_and_back(W, "nf4")).norm() / W.norm()), rel=1e-4)
    written = load_file(tmp_path / "out/model.safetensors")[record.tensor]
    factors = load_file(tmp_path / "out/ailora_init/adapter_model.safetensors")
    A, B = (factors[f"base_model.model.{record.module}.lora_{side}.weight"].double() for side in "AB")
    assert (W.double() - written.double() - B @ A).norm() / W.double().norm() == pytest.approx(record.grid_error)


def four_bits(folder: Path, auto: Any, kind: str = "nf4", **options: Any) -> nn.Module:
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, **options)
    found: nn.Module = auto.from_pretrained(folder, dtype="auto", quantization_config=bits)
    return found


def given_back(model: nn.Module, module: str) -> Tensor:
    layer = model.get_submodule(module)
    assert isinstance(layer, Linear4bit)
    found: Tensor = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return found


def require_bit_for_bit(model: nn.Module, folder: Path, records: tuple[ModuleRecord, ...]) -> None:
    """Every touched matrix is what the file holds, in its rows of the module."""
    held: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        held |= load_file(path)
    for record in records:
        W = held[record.tensor].T if record.part and record.part.transposed else held[record.tensor]
        runs = record.part.runs if record.part else ((0, len(W)),)
        found = given_back(model, record.module)
        assert all(torch.equal(found[start:stop].to(W.dtype), W[start:stop]) for start, stop in runs)


@pytest.mark.parametrize(("kind", "dtype"), [("nf4", "float32"), ("nf4", "bfloat16"), ("nf4", "float16"),
                                             ("fp4", "bfloat16")])  # fmt: skip
def test_load_in_4bit_gives_the_file_bit_for_bit(kind: str, dtype: str, tmp_path: Path) -> None:
    source = minilm(tmp_path / "model", getattr(torch, dtype))
    config = (source / "config.json").read_text().replace('"torch_dtype": "float32"', f'"torch_dtype": "{dtype}"')
    (source / "config.json").write_text(config)
    manifest = made(source, tmp_path / "out", 8, rounds=2, grid=kind)
    assert {one.base_dtype for one in manifest.modules} == {{"float32": "F32", "bfloat16": "BF16"}.get(dtype, "F16")}
    model = four_bits(tmp_path / "out", AutoModel, kind)
    require_bit_for_bit(model, tmp_path / "out", manifest.modules)
    assert verify(tmp_path / "out").holds


@pytest.mark.faults
def test_load_in_4bit_gives_smollm2_bit_for_bit(tmp_path: Path) -> None:
    source = smollm2(tmp_path / "model")
    manifest = made(source, tmp_path / "out", 16, method="pissa")
    require_bit_for_bit(four_bits(tmp_path / "out", AutoModelForCausalLM), tmp_path / "out", manifest.modules)
    assert len(manifest.modules) == 60 and max(ratios(manifest, "q") + ratios(manifest, "v")) < 0.85
    assert verify(tmp_path / "out").holds


def gpt2(folder: Path) -> Path:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_a_fused_conv1d_is_quantised_as_the_loader_turns_it(tmp_path: Path) -> None:
    """Rows of W^K keep their bytes; blocks of 64 run along the inputs, which the file has in columns."""
    manifest = made(gpt2(tmp_path / "model"), tmp_path / "out", 4)
    require_bit_for_bit(four_bits(tmp_path / "out", AutoModelForCausalLM), tmp_path / "out", manifest.modules)
    assert verify(tmp_path / "out").holds


def test_every_linear_layer_may_lie_on_it(tmp_path: Path) -> None:
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    manifest = made(tmp_path / "model", tmp_path / "out", 2, method="pissa", roles=["all-linear"], rounds=2)
    assert len({one.module for one in manifest.modules}) == 14
    require_bit_for_bit(four_bits(tmp_path / "out", AutoModelForCausalLM), tmp_path / "out", manifest.modules)


def test_rows_that_a_block_would_leave_are_refused_where_others_follow(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path / "model")
    with pytest.raises(OptionError, match="rows that are no multiple of 64"):
        initialize(tmp_path / "model", 2, grid="nf4", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no base": ({"no_base": True}, "residual base, and none is written"),
    "nothing moved": ({"method": "lora"}, "residual base, and none is written"),
    "rounding": ({"rounding": "nearest"}, "no --rounding"),
    "DoRA": ({"dora": True}, "no --dora"),
    "another grid": ({"grid": "int4"}, "it must be nf4 or fp4"),
    "no rounds": ({"rounds": 0}, "with 1 to 100"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_refused(case: str, tmp_path: Path) -> None:
    options, told = WRONG[case]
    build("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(OptionError, match=told):
        initialize(tmp_path / "model", 2, output=tmp_path / "out", **{"grid": "nf4", **options})


class Told:
    """A progress that keeps its notices."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_what_the_grid_swallows_is_told(mini: Path, tmp_path: Path) -> None:
    """Minor components of a square W^V: one round, and a notice."""
    told = Told()
    manifest = made(mini, tmp_path / "out", 8, layers="0,1", progress=told)
    assert {one.rounds for one in manifest.modules if one.role == "v"} == {1}
    assert all(one.survival is not None and one.survival < 0.5 for one in manifest.modules if one.role == "v")
    assert any("the error of minor is 1.000 of that of W itself" in text and "survives" in text for text in told.texts)
    assert not any("--base-dtype" in text for text in told.texts)


def test_rounds_end_where_they_gain_nothing(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    manifest = made(tmp_path / "model", tmp_path / "out", 2, method="pissa", rounds=100)
    assert all(1 <= (one.rounds or 0) < 100 for one in manifest.modules)


def test_a_matrix_that_left_the_grid_does_not_verify(mini: Path, tmp_path: Path) -> None:
    made(mini, tmp_path / "out", 8, layers="0", rounds=1)
    path = tmp_path / "out/model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layer.0.attention.self.query.weight" in name)
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] += 0.01
    save_file(tensors, path, {"format": "pt"})
    checks = {check.name: check for check in verify(tmp_path / "out").checks}
    assert not checks["grid"].holds and "is not on the grid of nf4" in checks["grid"].detail


def test_a_trained_adapter_merges_into_the_base_it_was_trained_on(tmp_path: Path) -> None:
    """In four bits and in the merged file the same numbers; `convert` tells what the original has more."""
    torch.manual_seed(0)
    build("llama").save_pretrained(tmp_path / "model")
    folder, inputs = tmp_path / "out", FAMILIES["llama"].inputs()
    manifest = made(tmp_path / "model", folder, 2, method="pissa")
    start = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), folder / "ailora_init")
    trained = copy.deepcopy(start)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    trained.save_pretrained(tmp_path / "trained")
    merge(folder, tmp_path / "trained", tmp_path / "merged")
    expected = output(trained, inputs)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (output(merged, inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()
    told = Told()
    convert(tmp_path / "trained", folder, tmp_path / "plain", progress=told)
    worst = max(one.grid_error or 0 for one in manifest.modules)
    assert any(f"what nf4 took from the base, up to {worst:.1%} of a matrix" in text for text in told.texts)
    with pytest.raises(TargetError, match="which no subtraction gives"):
        residualize(build("llama"), folder / "ailora_init")


def test_the_card_says_how_to_load_it_in_four_bits(mini: Path, tmp_path: Path) -> None:
    manifest = made(mini, tmp_path / "out", 8, layers="0", rounds=1)
    card = (tmp_path / "out/README.md").read_text()
    section = card.partition("## In four bits")[2].partition("\n## ")[0]
    lines = [line.removeprefix("    ") for line in section.splitlines() if line.startswith("    ")]
    place: dict[str, Any] = {}
    imports = "\n".join(line for line in card.splitlines() if line.startswith("from transformers import"))
    exec("\n".join([imports, *lines]), place)
    require_bit_for_bit(place["base"], tmp_path / "out", manifest.modules)


def test_the_same_options_give_the_same_bytes_and_none_without_a_grid(mini: Path, tmp_path: Path) -> None:
    for name in "ab":
        made(mini, tmp_path / name / "out", 4, layers="0", rounds=2)
    assert (tmp_path / "a/out/model.safetensors").read_bytes() == (tmp_path / "b/out/model.safetensors").read_bytes()
    initialize(mini, 4, layers="0", output=tmp_path / "plain")
    assert "grid" not in (tmp_path / "plain/ailora.json").read_text()
