"""Numbers at the edge of a dtype, through every verb: right, or refused with the tensor, the value and the way out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ailora_tools import analyze, convert, export, initialize, merge, residualize, verify
from ailora_tools.adapters.apply import rescaled
from ailora_tools.errors import AiloraError, CheckpointError, NumericalError, OptionError
from ailora_tools.output.names import ADAPTER_FOLDER
from ailora_tools.output.spans import json_text

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
PREFIX = "base_model.model."


def model(folder: Path, change: Callable[[Tensor], Tensor], dtype: torch.dtype, name: str = "") -> Path:
    """A Llama of two layers whose W^Q and W^V (or only tensor `name`) are changed."""
    tensors = llama_tensors(dtype=torch.float32)
    for key, W in tensors.items():
        if (key == name + ".weight") if name else ("q_proj" in key or "v_proj" in key):
            tensors[key] = change(W)
    return write_checkpoint(
        folder, {key: W.to(dtype) for key, W in tensors.items()}, torch_dtype=str(dtype).removeprefix("torch.")
    )


def adapter(folder: Path, factors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True)
    modules = sorted({key.split(".lora_")[0] for key in factors})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": modules, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {PREFIX + key: value.contiguous() for key, value in factors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def plain(folder: Path, size: float = 1.0, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """An adapter of rank 2 for one W^Q of 48 x 48."""
    generator = torch.Generator().manual_seed(3)
    A, B = (torch.randn(*shape, generator=generator).mul(size).to(dtype) for shape in ((2, 48), (48, 2)))
    return adapter(folder, {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}, **config)


def _no_json(word: str) -> None:
    pytest.fail(f"{word} is no JSON")


def finite(folder: Path) -> bool:
    """Whether every tensor is finite and every document is JSON."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=_no_json)
    return all(bool(W.isfinite().all()) for path in folder.rglob("*.safetensors") for W in load_file(path).values())


def big(W: Tensor) -> Tensor:
    return W * 1e13


def edge(W: Tensor) -> Tensor:
    """Signs of one size near float16's end: what is left of them after a subtraction does not fit."""
    return torch.sign(W) * 60000.0


@pytest.mark.parametrize("rounding", ["auto", "nearest", "stochastic"])
def test_a_residual_beyond_float16_is_refused_in_every_rounding(rounding: str, tmp_path: Path) -> None:
    source = model(tmp_path / "model", edge, torch.float16)
    with pytest.raises(NumericalError, match=r"residual: values up to \S+e\+05 do not fit float16.*\n.*--base"):
        initialize(source, 4, rounding=rounding, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = initialize(source, 4, base_dtype="float32", output=tmp_path / "wide")
    assert finite(made.folder) and verify(made.folder).holds


@pytest.mark.parametrize("no_base", [False, True])
def test_an_adapter_beyond_float16_is_refused(no_base: bool, tmp_path: Path) -> None:
    source = model(tmp_path / "model", big, torch.float32)
    with pytest.raises(NumericalError, match=r"lora_[AB]: values up to \S+ do not fit float16, .* 65504.\n.*--ad"):
        initialize(source, 4, adapter_dtype="float16", no_base=no_base, output=tmp_path / "out")
    for dtype in ("float32", "bfloat16"):
        made = initialize(source, 4, adapter_dtype=dtype, no_base=no_base, output=tmp_path / dtype)
        assert finite(made.folder) and verify(made.folder).holds


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_any_scale_are_verified_and_analysed(scale: float, dtype: torch.dtype, tmp_path: Path) -> None:
    source = model(tmp_path / "model", lambda W: W * scale, dtype)
    made = initialize(source, 4, output=tmp_path / "out")
    assert finite(made.folder) and verify(made.folder).holds
    merged = merge(made.folder, made.adapter, tmp_path / "merged")
    assert all(math.isfinite(module.change) for module in merged.modules)
    found = analyze(source, against=[merged.folder, plain(tmp_path / "plain")], rank=4, output=tmp_path / "report")
    assert finite(found.folder) and not found.skipped


def test_float64_beyond_squares_is_refused_or_right(tmp_path: Path) -> None:
    source = write_checkpoint(
        tmp_path / "model", {key: W.double() * (1e200 if "proj" in key else 1) for key, W in llama_tensors().items()}
    )
    with pytest.raises(NumericalError, match=r"lora_[AB]: values up to .* do not fit float32.*\nLeave the layer out"):
        initialize(source, 4, output=tmp_path / "out")
    with pytest.raises(NumericalError, match=r"None of the 4 matrices .* its largest value is 1\.\d+e\+199; between"):
        analyze(source, rank=4, output=tmp_path / "report")
    merged = merge(source, plain(tmp_path / "plain"), tmp_path / "merged")
    assert finite(merged.folder) and merged.modules[0].change < 1e-100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fresh_folder_at_full_rank_holds(dtype: torch.dtype, tmp_path: Path) -> None:
    """Nothing but the rounding of the subtraction is left of W then, and that is what is recorded."""
    source = model(tmp_path / "model", lambda W: W, dtype)
    made = initialize(source, 24, output=tmp_path / "out")
    assert made.manifest is not None
    full = [record for record in made.manifest.modules if record.role == "v"]
    assert full and all(0 < record.reconstruction_error < 1e-6 for record in full)  # the subtraction is in float64
    assert verify(made.folder).holds


def test_dead_counts_what_is_stored(tmp_path: Path) -> None:
    source = model(tmp_path / "model", lambda W: W * 1e-16, torch.float32)
    for dtype, dead in (("float32", 0), ("float16", 4)):
        made = initialize(source, 4, adapter_dtype=dtype, output=tmp_path / dtype)
        assert made.manifest is not None and {record.dead for record in made.manifest.modules} == {dead}


def test_a_model_of_zeros(tmp_path: Path) -> None:
    source = model(tmp_path / "model", torch.zeros_like, torch.bfloat16)
    made = initialize(source, 4, output=tmp_path / "out")
    assert made.manifest is not None and {record.dead for record in made.manifest.modules} == {4}
    assert verify(made.folder).holds and finite(made.folder)
    for number, options in enumerate(({}, {"heads": True, "suggest_ranks": 4}, {"against": [source]})):
        found = analyze(source, rank=4, output=tmp_path / f"report{number}", **options)  # type: ignore[arg-type]
        assert finite(found.folder)


# DoRA


def zero_row(W: Tensor) -> Tensor:
    W = W.clone()
    W[5] = 0
    return W


def test_peft_makes_nan_of_a_zero_row_and_init_refuses_it(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    linear = nn.Sequential(nn.Linear(48, 48, bias=False))
    linear[0].weight.data[5] = 0
    config = LoraConfig(r=4, target_modules=["0"], use_dora=True)
    assert bool(get_peft_model(linear, config)(torch.ones(1, 48)).isnan()[0, 5])
    source = model(tmp_path / "model", zero_row, torch.float32, Q)
    with pytest.raises(NumericalError, match=rf"{Q}.weight: 1 of 48 rows are zero, the first is row 5.*\n.*--dora"):
        initialize(source, 4, dora=True, output=tmp_path / "out")
    made = initialize(source, 4, dora=True, layers="1", output=tmp_path / "out")
    assert verify(made.folder).holds


def dora(folder: Path, magnitude: Tensor) -> Path:
    A, B = torch.randn(2, 48), torch.randn(48, 2)
    B[5] = 0
    factors = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.lora_magnitude_vector": magnitude}
    return adapter(folder, factors, use_dora=True)


def test_merging_dora_keeps_a_zero_row_and_refuses_one_without_direction(tmp_path: Path) -> None:
    source = model(tmp_path / "model", zero_row, torch.float32, Q)
    magnitude = torch.ones(48)
    magnitude[5] = 0
    merged = merge(source, dora(tmp_path / "good", magnitude), tmp_path / "merged")
    new = load_file(merged.folder / "model.safetensors")[f"{Q}.weight"]
    assert not new[5].any() and torch.allclose(new.norm(dim=1), magnitude)
    found = analyze(source, against=[tmp_path / "good"], rank=4, output=tmp_path / "report")
    assert finite(found.folder) and not found.skipped
    bad = dora(tmp_path / "bad", torch.full((48,), 0.25))
    with pytest.raises(NumericalError, match=r"lora_magnitude_vector: magnitude 0.25 for row 5, which is zero"):
        merge(source, bad, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert "row 5" in analyze(source, against=[bad], rank=4, output=tmp_path / "report2").skipped[0]["reason"]


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e25])
def test_rows_are_rescaled_at_any_scale(scale: float) -> None:
    W = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    expected = rescaled(W.double(), torch.arange(1.0, 5.0).double(), "W")
    assert torch.allclose(rescaled(W * scale, torch.arange(1.0, 5.0), "W").double(), expected, rtol=1e-5)


# merge, convert, export, residualize


def test_a_merge_beyond_float16_is_refused(tmp_path: Path) -> None:
    source = model(tmp_path / "model", lambda W: W, torch.float16)
    large = plain(tmp_path / "large", 300.0)
    with pytest.raises(NumericalError, match=rf"{Q}.weight: values up to \S+ do not fit float16.*\n.*--base-dtype"):
        merge(source, large, tmp_path / "out")
    assert finite(merge(source, large, tmp_path / "wide", base_dtype="float32").folder)
    with pytest.raises(NumericalError, match="values are NaN or infinite"):
        merge(source, plain(tmp_path / "huge", 1e30), tmp_path / "out", base_dtype="float32")


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -1, 0, "16", None, True, [1], 10**400, 1e9])
def test_an_alpha_that_is_no_usable_number_is_refused_everywhere(alpha: Any, tmp_path: Path) -> None:
    source = model(tmp_path / "model", lambda W: W, torch.float32)
    for number, config in enumerate(({"lora_alpha": alpha}, {"alpha_pattern": {Q: alpha}})):
        held = plain(tmp_path / f"adapter{number}", **config)
        # By its type or range where that is wrong, else by the scaling it makes.
        told = (
            r"adapter_config\.json: (\$\.(lora_alpha|alpha_pattern)|not valid JSON|alpha of .* at rank 2; the scaling)"
        )
        with pytest.raises(CheckpointError, match=told):
            merge(source, held, tmp_path / "out")
        with pytest.raises(CheckpointError, match=told):
            export(held, "mlx", tmp_path / "out")
        with pytest.raises(CheckpointError, match=told):
            analyze(source, against=[held], rank=2, output=tmp_path / "out")


@pytest.mark.parametrize("rslora", [False, True])
def test_an_alpha_beyond_any_use_is_refused_before_the_work(rslora: bool, tmp_path: Path) -> None:
    source = model(tmp_path / "model", lambda W: W, torch.float32)
    for alpha in (10**400, 10**9):
        with pytest.raises(OptionError, match=r"alpha 1\S*0 at rank 2 makes a scaling beyond 1,000,000"):
            initialize(source, 2, alpha=alpha, rslora=rslora, output=tmp_path / "out")


def test_converting_beyond_float16_is_refused(tmp_path: Path) -> None:
    source = model(tmp_path / "model", big, torch.float32)
    made = initialize(source, 4, output=tmp_path / "out")
    trained = tmp_path / "trained"
    trained.mkdir()
    for path in made.adapter.iterdir():
        (trained / path.name).write_bytes(path.read_bytes())
    factors = load_file(trained / "adapter_model.safetensors")
    save_file({key: 1.5 * value for key, value in factors.items()}, trained / "adapter_model.safetensors")
    with pytest.raises(NumericalError, match=r"_proj: values up to \S+ do not fit float16.*\n.*--dtype float32"):
        convert(trained, made.folder, tmp_path / "narrow", dtype="float16")
    assert not (tmp_path / "narrow").exists()
    for dtype in ("float32", "bfloat16"):
        assert finite(convert(trained, made.folder, tmp_path / dtype, dtype=dtype).folder)


def test_exporting_beyond_float16_is_refused(tmp_path: Path) -> None:
    held = plain(tmp_path / "adapter", 1000.0, torch.float16, lora_alpha=2000)
    with pytest.raises(NumericalError, match=rf"{Q}, lora_B times its scaling: values up to \S+ do not fit float16"):
        export(held, "mlx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_residualize_refuses_what_does_not_fit_and_changes_nothing(tmp_path: Path) -> None:
    network = build("llama").half()
    layers = [module.self_attn.q_proj for module in network.model.layers]  # type: ignore[union-attr]
    for layer in layers[1:]:
        layer.weight.data = edge(layer.weight.data.float()).half()
    network.save_pretrained(tmp_path / "model")
    initialize(tmp_path / "model", 4, no_base=True, roles=["q"], output=tmp_path / "out")
    before = {name: W.clone() for name, W in network.state_dict().items()}
    with pytest.raises(NumericalError, match=r"do not fit float16.*\nLoad the model in float32"):
        residualize(network, tmp_path / "out" / ADAPTER_FOLDER)
    assert all(torch.equal(before[name], W) for name, W in network.state_dict().items())
    residualize(network.float(), tmp_path / "out" / ADAPTER_FOLDER)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_document_holds_nan_or_infinity(value: float) -> None:
    with pytest.raises(NumericalError, match=r"^modules.1.error is NaN or infinite, which JSON cannot hold"):
        json_text({"modules": [{"error": 0.0}, {"error": value}]})


def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    source = model(tmp_path / "model", edge, torch.float16)
    before = tree(source)
    with pytest.raises(AiloraError):
        initialize(source, 4, output=tmp_path / "out")
    assert tree(source) == before and {path.name for path in tmp_path.iterdir()} == {"model"}
