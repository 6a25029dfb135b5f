"""`init --no-base`: a frozen adapter in the place of the residual base, beside an original of any kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kit.adapters import ALL, load_with_offset
from kit.cards import card_blocks, run_card
from kit.checkpoints import tree
from kit.families import build, output
from kit.few_bits import FORMATS, write_quantised
from safetensors.torch import load_file, save_file

from ailora_tools import analyze, initialize, verify
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.output.names import ADAPTER_FOLDER, OFFSET_FOLDER


@pytest.mark.parametrize(
    "name", ["llama", "bert with a head", "t5, heads narrower than the model", "gpt2", "gpt-neox", "falcon, groups"]
)
def test_the_two_adapters_cancel_and_only_one_trains(name: str, tmp_path: Path) -> None:
    family, model = ALL[name], build(name)
    model.save_pretrained(tmp_path / "model")
    before = tree(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "out")
    assert tree(tmp_path / "model") == before
    assert not list((tmp_path / "out").glob("*.safetensors")) and not (tmp_path / "out/config.json").exists()
    expected = output(model, family.inputs())
    loaded = load_with_offset(model, made.folder)
    assert (output(loaded, family.inputs()) - expected).abs().max() <= 1e-5 * expected.abs().max()
    trainable = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert trainable and all(".default." in name for name in trainable)
    loaded.train()
    with torch.enable_grad():
        loss = next(iter(loaded(**family.inputs()).values())).square().mean()
    loss.backward()
    gradients = [parameter.grad for name, parameter in loaded.named_parameters() if ".lora_B.default" in name]
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    assert verify(made.folder).holds


def test_the_first_adapter_is_that_of_a_run_with_a_base(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    initialize(tmp_path / "model", 2, output=tmp_path / "with")
    initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "without")
    ours, theirs = (tmp_path / name / ADAPTER_FOLDER / ADAPTER_WEIGHTS for name in ("without", "with"))
    assert ours.read_bytes() == theirs.read_bytes()
    offset = load_file(tmp_path / "without" / OFFSET_FOLDER / ADAPTER_WEIGHTS)
    for key, value in load_file(ours).items():
        assert torch.equal(offset[key], value if ".lora_A." in key else -value)


def test_the_code_of_the_card_is_the_original_to_the_bit(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "model")
    initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "out")
    found = run_card(tmp_path / "out")["model"].eval()
    assert torch.equal(output(found, ALL["llama"].inputs()), output(model, ALL["llama"].inputs()))


def test_the_card_of_a_quantised_base_takes_nothing_out_of_it(tmp_path: Path) -> None:
    folder, *_ = write_quantised(tmp_path / "few", "NF4")
    initialize(folder, 4, no_base=True, output=tmp_path / "out")
    text = "".join(card_blocks(tmp_path / "out"))
    assert "attach(model, " in text and "residualize" not in text


@pytest.mark.parametrize("form", FORMATS)
def test_a_quantised_base_gets_the_adapter_of_its_numbers(form: str, tmp_path: Path) -> None:
    folder, expected, _, error = write_quantised(tmp_path / "few", form)
    made = initialize(folder, 4, no_base=True, output=tmp_path / "out")
    assert made.manifest is not None and verify(made.folder).holds
    factors = load_file(made.adapter / ADAPTER_WEIGHTS)
    for record in made.manifest.modules:
        W = expected[f"{record.module}.weight"].double()
        A, B = (factors[f"base_model.model.{record.module}.lora_{side}.weight"].double() for side in "AB")
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        part = slice(0, 4) if record.role == "q" else slice(len(S) - 4, len(S))
        oracle = U[:, part] @ torch.diag(S[part]) @ Vh[part]
        assert (B @ A - oracle).norm() <= (1e-4 + 100 * error) * S[0]


def test_an_offset_that_was_changed_does_not_verify(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "out")
    factors = load_file(made.offset / ADAPTER_WEIGHTS)
    name = next(name for name in factors if ".lora_B." in name)
    save_file({**factors, name: factors[name] * 1.5}, made.offset / ADAPTER_WEIGHTS, {"format": "pt"})
    checks = {check.name: check for check in verify(made.folder).checks}
    assert not checks["offset"].holds and name.split(".lora_B")[0] in checks["offset"].detail
    (made.offset / ADAPTER_WEIGHTS).unlink()
    assert not {check.name: check for check in verify(made.folder).checks}["offset"].holds


def test_bytes_to_write_and_the_card(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    planned = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "out", dry_run=True)
    made = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "out")
    written = sum(path.stat().st_size for path in made.folder.rglob(ADAPTER_WEIGHTS))
    assert planned.operation.nbytes <= written <= planned.operation.nbytes + 8192
    card = (made.folder / "README.md").read_text()
    assert card.index("residualize(base, ") < card.index("attach(model, ") < card.index('adapter_name="offset"')
    assert json.loads((made.folder / "ailora.json").read_text())["offset"] is True


def test_an_analysis_may_take_it_as_an_adapter(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "out")
    document = analyze(tmp_path / "model", against=[made.adapter], output=tmp_path / "report", rank=2).document
    assert all(row["changes"][0]["metrics"]["relative_change"] > 0 for row in document["matrices"])
