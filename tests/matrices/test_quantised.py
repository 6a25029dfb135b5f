"""8-bit floats with scales: looked at as q * scale, never written, never taken for plain numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools import analyze, initialize, inspect_checkpoint, verify
from ailora_tools.errors import TargetError

Tensors = dict[str, Tensor]


def quantise(
    W: Tensor, block: tuple[int, int], dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor, Tensor]:
    """Per block as DeepSeek-V3 does it, by loops: (q, factors, q * factors)."""
    rows, columns = W.shape
    high, wide = block
    q, factors, back = torch.empty_like(W, dtype=dtype), [], torch.empty_like(W, dtype=torch.float32)
    for top in range(0, rows, high):
        line = []
        for left in range(0, columns, wide):
            part = W[top : top + high, left : left + wide].float()
            factor = part.abs().max() / torch.finfo(dtype).max
            q[top : top + high, left : left + wide] = (part / factor).to(dtype)
            back[top : top + high, left : left + wide] = q[top : top + high, left : left + wide].float() * factor
            line.append(factor)
        factors.append(torch.stack(line))
    return q, torch.stack(factors), back


def write(folder: Path, block: tuple[int, int], suffix: str, squeeze: bool = False) -> tuple[Path, Path]:
    """A checkpoint with quantised W^Q and W^V, and the same one with their float32 values."""
    quantised: Tensors = {}
    plain: Tensors = {}
    for name, value in llama_tensors(layers=2, hidden=300, kv=70).items():
        quantised[name], plain[name] = value, value.clone()
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            quantised[name], factors, plain[name] = quantise(value, block)
            quantised[name + suffix] = factors.reshape(-1)[:1].clone() if squeeze else factors
    settings = {"quant_method": "fp8", "weight_block_size": list(block)}
    return (write_checkpoint(folder / "q", quantised, quantization_config=settings),
            write_checkpoint(folder / "plain", plain))  # fmt: skip


CASES = {
    "blocks, as DeepSeek-V3": ((128, 128), "_scale_inv", False),
    "other blocks": ((64, 32), "_scale_inv", False),
    "rows": ((1, 300), "_scale", False),
    "the tensor": ((300, 300), "_scale", True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_spectra_are_those_of_the_dequantised_matrices(case: str, tmp_path: Path) -> None:
    quantised, plain = write(tmp_path, *CASES[case])
    near, far = (
        analyze(folder, output=tmp_path / f"out-{folder.name}", rank=4).document for folder in (plain, quantised)
    )
    assert [row["spectrum"] for row in near["matrices"]] == [row["spectrum"] for row in far["matrices"]]
    assert {row["dtype"] for row in far["matrices"]} == {"F8_E4M3"}
    assert any("quantised, F8_E4M3" in text for text in far["notices"])
    assert inspect_checkpoint(quantised).plan.targets[0].quantised is not None


def test_quantised_against_plain_is_the_rounding(tmp_path: Path) -> None:
    quantised, _ = write(tmp_path, (128, 128), "_scale_inv")
    original = write_checkpoint(tmp_path / "original", llama_tensors(layers=2, hidden=300, kv=70))
    document = analyze(original, against=[quantised], output=tmp_path / "out", rank=4).document
    for row in document["matrices"]:
        assert 0.005 < row["changes"][0]["metrics"]["relative_change"] < 0.05


def test_init_refuses_and_says_the_way_out(tmp_path: Path) -> None:
    quantised, _ = write(tmp_path, (128, 128), "_scale_inv")
    before = tree(quantised)
    with pytest.raises(TargetError, match=r"stored as F8_E4M3.*\nWeights in few bits hold no residual"):
        initialize(quantised, 4, output=tmp_path / "out")
    assert tree(quantised) == before and not (tmp_path / "out").exists()


def test_8_bit_numbers_without_scales_are_not_read(tmp_path: Path) -> None:
    """They would be matrices of numbers up to 448."""
    tensors = {
        name: value.to(torch.float8_e4m3fn) if "proj" in name else value for name, value in llama_tensors().items()
    }
    with pytest.raises(TargetError, match="stored as F8_E4M3"):
        analyze(write_checkpoint(tmp_path / "model", tensors), output=tmp_path / "out")


def test_a_scale_of_another_shape_is_refused(tmp_path: Path) -> None:
    tensors = llama_tensors(hidden=300)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.ones(2, 5)
    folder = write_checkpoint(tmp_path / "model", tensors)
    with pytest.raises(TargetError, match=r"scale \[2, 5\]: for blocks of 128 x 128 .* \[3, 3\]"):
        analyze(folder, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_experts_in_mxfp4_are_copied_beside_attention_in_bfloat16(tmp_path: Path) -> None:
    """gpt-oss: blocks and scales of its experts are bytes that nobody reads."""
    build("gpt-oss").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    held = {name: value for name, value in load_file(path).items() if ".experts." not in name or "bias" in name}
    generator = torch.Generator().manual_seed(0)
    packed = {
        f"model.layers.{layer}.mlp.experts.{name}": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        for layer in (0, 1)
        for name, shape in (("gate_up_proj_blocks", (2, 16, 2, 16)), ("gate_up_proj_scales", (2, 16, 2)))
    }
    save_file({**held, **packed}, path, {"format": "pt"})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    made = initialize(tmp_path / "model", 2, output=tmp_path / "out")
    assert {record.dtype for record in made.manifest.modules} == {"BF16"}
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in packed.items())
    assert verify(tmp_path / "out").holds
