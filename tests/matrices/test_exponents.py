"""Scales in 8 bits: exponents of OCP MX where that is certain, refused where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools import analyze, initialize, inspect_checkpoint, verify
from ailora_tools.analysis.tuned import load_projection
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import AiloraError, TargetError
from ailora_tools.targets.plan import make_plan

HIDDEN, KV = 128, 64
SAID: dict[str, dict[str, Any]] = {
    "transformers": {"quant_method": "mxfp8"},
    "transformers, fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "DeepSeek": {"quant_method": "other", "scale_fmt": "ue8m0"},
    "ModelOpt": {"quant_method": "modelopt", "quant_algo": "MXFP8"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "mxfp8-quantized"},
}
BLOCKS = [(1, 32), (1, 16), (1, 64), (32, 32), (64, 128)]


def exact(bytes_: Tensor) -> Tensor:
    """2^(s - 127) in float64, of which every value is exact."""
    return torch.ldexp(torch.ones(bytes_.shape, dtype=torch.float64), bytes_.int() - 127)


def quantise(W: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(q, bytes, the numbers they stand for) with the shared exponent of OCP MX 1.0, section 6.3."""
    (rows, columns), (high, wide) = W.shape, block
    largest = W.reshape(rows // high, high, columns // wide, wide).abs().amax((1, 3)).double()
    coded = (torch.floor(torch.log2(largest)) - 8 + 127).to(torch.uint8)
    factors = exact(coded).repeat_interleave(high, 0).repeat_interleave(wide, 1)
    q = (W.double() / factors).clamp(-448, 448).float().to(torch.float8_e4m3fn)
    return q, coded, (q.double() * factors).float()


def write(
    folder: Path, settings: dict[str, Any], block: tuple[int, int] = (1, 32), suffix: str = "_scale", e8m0: bool = False
) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint with W^Q and W^V in 8 bits, and what they stand for."""
    tensors, plain = dict(llama_tensors(layers=2, hidden=HIDDEN, kv=KV)), {}
    for name in list(tensors):
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            W = tensors[name].float() * torch.logspace(-3, 3, HIDDEN)
            tensors[name], coded, plain[name] = quantise(W, block)
            scale = name.removesuffix("weight") + "scale" if suffix == ".scale" else name + suffix
            tensors[scale] = coded.view(torch.float8_e8m0fnu) if e8m0 else coded
    return write_checkpoint(folder, tensors, quantization_config=settings), plain


def change(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def matrices(folder: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    plan = make_plan(checkpoint, quantised=True)
    return {target.tensor: load_projection(checkpoint.files, target) for target in plan.targets}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("said", SAID)
def test_bytes_that_the_config_calls_exponents_are_exponents(said: str, tmp_path: Path) -> None:
    folder, plain = write(tmp_path, SAID[said])
    assert same(matrices(folder), plain)


@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv", ".scale"])
def test_e8m0_needs_no_word_in_the_config(suffix: str, tmp_path: Path) -> None:
    folder, plain = write(tmp_path, {"quant_method": "who knows"}, suffix=suffix, e8m0=True)
    assert same(matrices(folder), plain)


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_block_is_stated_or_follows_from_the_shape(block: tuple[int, int], stated: bool, tmp_path: Path) -> None:
    settings = {"quant_method": "mxfp8", **({"weight_block_size": list(block)} if stated else {})}
    folder, plain = write(tmp_path, settings, block)
    assert same(matrices(folder), plain)


def test_exponents_beside_blocks_stated_for_others(tmp_path: Path) -> None:
    """DeepSeek-V4's config.json states the blocks of its dense layers only."""
    folder, plain = write(tmp_path, {"quant_method": "fp8", "weight_block_size": [16, 16]})
    assert same(matrices(folder), plain)


def test_every_byte_is_its_power_of_two(tmp_path: Path) -> None:
    q = torch.zeros(256, 32, dtype=torch.float8_e4m3fn)
    q[:, 0] = 1.0
    tensors = llama_tensors(layers=1, hidden=32, kv=32)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors |= {name: q, f"{name}_scale": torch.arange(256, dtype=torch.uint8)}
    folder = write_checkpoint(tmp_path, tensors, quantization_config={"quant_method": "mxfp8"})
    W = matrices(folder)[name][:, 0]
    assert torch.equal(W[:255].double(), exact(torch.arange(255)))
    assert W[255].isnan()


def test_the_exponent_that_is_no_number_is_told(tmp_path: Path) -> None:
    folder, _ = write(tmp_path / "q", SAID["transformers"])
    change(folder, lambda tensors: tensors["model.layers.1.self_attn.q_proj.weight_scale"][3].fill_(255))
    skipped = analyze(folder, output=tmp_path / "report", rank=4).skipped
    assert [row["label"] for row in skipped] == ["q 1"] and "NaN" in skipped[0]["reason"]
    with pytest.raises(AiloraError, match=r"layers\.1\.self_attn\.q_proj.*NaN"):
        initialize(folder, 4, no_base=True, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_start_without_a_base_is_that_of_the_numbers(tmp_path: Path) -> None:
    folder, plain = write(tmp_path / "q", SAID["transformers"])
    other = write_checkpoint(tmp_path / "plain", {**llama_tensors(layers=2, hidden=HIDDEN, kv=KV), **plain})
    near, far = (initialize(model, 4, no_base=True, output=tmp_path / f"out-{model.name}") for model in (folder, other))
    held = [load_file(made.adapter / "adapter_model.safetensors") for made in (near, far)]
    assert same(*held) and verify(near.folder).holds


@pytest.mark.parametrize("settings", [{}, {"quant_method": "quark"}, {"quant_method": "modelopt", "quant_algo": "FP8"}])
def test_bytes_of_which_the_config_says_nothing_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = write(tmp_path, settings)
    with pytest.raises(TargetError, match=r'q_proj\.weight_scale is stored as U8.*\n.*"scale_fmt": "ue8m0"'):
        inspect_checkpoint(folder)


def test_powers_of_two_in_float32_are_plain_factors(tmp_path: Path) -> None:
    """DeepSeek-V3.1 says ue8m0 and stores the powers themselves."""
    folder, plain = write(tmp_path, {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [1, 32]})

    def spell_out(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.endswith("_scale"):
                tensors[name] = exact(tensors[name]).float()

    change(folder, spell_out)
    assert same(matrices(folder), plain)


@pytest.mark.parametrize("second", ["_scale_2", "_global_scale", "_zero_point"])
def test_a_second_factor_is_refused(second: str, tmp_path: Path) -> None:
    folder, _ = write(tmp_path, SAID["transformers"])
    change(folder, lambda tensors: tensors.update({f"model.layers.0.self_attn.v_proj.weight{second}": torch.ones(1)}))
    with pytest.raises(TargetError, match=rf"v_proj\.weight{second} lies beside"):
        inspect_checkpoint(folder)


def test_a_float_weight_with_a_scale_beside_it_is_refused(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(48, 1)
    with pytest.raises(
        TargetError, match=r"q_proj\.weight is stored as BF16, and beside it lies .*q_proj\.weight_scale"
    ):
        inspect_checkpoint(write_checkpoint(tmp_path, tensors))
