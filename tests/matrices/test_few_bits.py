"""Matrices in four or eight bits: read as the libraries that wrote them read them, entry by entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.few_bits import FORMATS, HIDDEN, KV, write_quantised
from safetensors.torch import load_file, save_file

from ailora_tools import analyze, inspect_checkpoint
from ailora_tools.analysis.tuned import load_projection
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import TargetError
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.selection import Selection


@pytest.mark.parametrize("form", FORMATS)
def test_every_entry_is_what_the_library_makes_of_it(form: str, tmp_path: Path) -> None:
    folder, expected, _, error = write_quantised(tmp_path, form)
    checkpoint = open_checkpoint(folder)
    plan = make_plan(checkpoint, Selection(("q", "k", "v", "o")), quantised=True)
    assert len(plan.targets) == 8 and any("quantised" in text for text in plan.notices)
    for target in plan.targets:
        W, wanted = load_projection(checkpoint.files, target), expected[f"{target.module}.weight"]
        assert W.dtype == torch.float32 and W.shape == target.shape == wanted.shape
        assert (W - wanted).abs().max() <= error * wanted.abs().max()


@pytest.mark.parametrize("form", ["NF4", "NF4, nested", "bitsandbytes INT8", "int4, groups, zero points"])
def test_spectra_lie_within_the_error_of_quantisation(form: str, tmp_path: Path) -> None:
    """Weyl: no singular value moves by more than the spectral norm of the difference."""
    folder, expected, plain, _ = write_quantised(tmp_path / "model", form)
    document = analyze(folder, output=tmp_path / "out", rank=4).document
    for row in document["matrices"]:
        W = plain[f"{row['module']}.weight"].double()
        S = torch.tensor(row["spectrum"]["singular_values"])
        moved = torch.linalg.matrix_norm(expected[f"{row['module']}.weight"].double() - W, 2)
        off = (S.double() - torch.linalg.svdvals(W)[: len(S)]).abs().max()
        assert 0 < off <= moved * (1 + 1e-6) + 1e-6


def test_inspect_tells_the_format(tmp_path: Path) -> None:
    folder, *_ = write_quantised(tmp_path, "NF4, nested")
    rows = inspect_checkpoint(folder).to_json()["targets"]
    assert {row["dtype"] for row in rows} == {"NF4 or FP4 (bitsandbytes)"}
    assert {tuple(row["shape"]) for row in rows} == {(HIDDEN, HIDDEN), (KV, HIDDEN)}


def test_packed_words_of_an_unknown_method_are_not_read(tmp_path: Path) -> None:
    plain = llama_tensors(hidden=HIDDEN, kv=KV, dtype=torch.float32)
    tensors = dict(plain)
    for name in plain:
        if "self_attn" in name:
            stored = FORMATS["AWQ"](tensors.pop(name))
            tensors |= {name.removesuffix(".weight") + suffix: value for suffix, value in stored.pieces.items()}
    folder = write_checkpoint(tmp_path / "model", tensors, quantization_config={"quant_method": "hqq"})
    with pytest.raises(TargetError, match=r"quantised in a way that is not known \(quant_method 'hqq'\)"):
        analyze(folder, output=tmp_path / "out")


@pytest.mark.parametrize("form", ["NVFP4", "MXFP4"])
def test_scales_of_four_bit_floats_in_another_dtype_are_not_guessed(form: str, tmp_path: Path) -> None:
    """Bytes beside packed bytes are exponents only where config.json says MXFP4, and never those of NVFP4."""
    folder, *_ = write_quantised(tmp_path / "model", form)
    tensors = load_file(folder / "model.safetensors")
    scales = [name for name in tensors if name.endswith(".weight_scale")]
    if form == "NVFP4":
        save_file(tensors | {name: tensors[name].view(torch.uint8) for name in scales}, folder / "model.safetensors")
    else:
        text = (folder / "config.json").read_text().replace("mxfp4-pack-quantized", "pack-quantized")
        (folder / "config.json").write_text(text)
    with pytest.raises(TargetError, match="is stored as U8: what it means"):
        analyze(folder, output=tmp_path / "out")


@pytest.mark.parametrize(("form", "setting"), [("GPTQ 4", {"bits": 3}), ("AWQ", {"version": "gemv"}),
                                               ("NF4", {"blocks": 1})])  # fmt: skip
def test_pieces_that_do_not_fit_are_an_error_with_their_shapes(
    form: str, setting: dict[str, Any], tmp_path: Path
) -> None:
    plain = llama_tensors(layers=1, hidden=HIDDEN, kv=KV, dtype=torch.float32)
    tensors, settings = dict(plain), {}
    for name in plain:
        if "self_attn" in name:
            stored = FORMATS[form](tensors.pop(name))
            pieces = dict(stored.pieces)
            if "blocks" in setting:
                pieces[".weight.absmax"] = pieces[".weight.absmax"][:-1]
            tensors |= {name.removesuffix(".weight") + suffix: value for suffix, value in pieces.items()}
            settings = {**stored.settings, **setting}
    folder = write_checkpoint(tmp_path / "model", tensors, quantization_config=settings)
    with pytest.raises(TargetError, match="cannot be put together"):
        analyze(folder, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
