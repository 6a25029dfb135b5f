"""`convert --reduce-intruders`: what `reduce_intruder_dimension` of PEFT makes of the loaded model, from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import near
from kit.families import build
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import Tensor, nn

from ailora_tools import convert, initialize
from ailora_tools.adapters.folder import open_adapter
from ailora_tools.errors import OptionError, TargetError
from ailora_tools.output.manifest import read_manifest
from ailora_tools.surgery.intruders import Originals, Reduction, reduce_intruders

ROLES = ("q", "v", "down")


def original(root: Path) -> nn.Module:
    return type(build("llama")).from_pretrained(root / "model").eval()  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA whose update is large where it is odd: new first directions; the same of a start from the weights."""
    root = tmp_path_factory.mktemp("intruders")
    build("llama").save_pretrained(root / "model")
    for method in ("lora", "pissa"):
        made = initialize(root / "model", 3, method=method, roles=ROLES, output=root / method, alpha=6)
        base = original(root) if method == "lora" else type(original(root)).from_pretrained(root / method)
        model = PeftModel.from_pretrained(base, made.adapter, is_trainable=True)
        for at, (name, value) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                value.data += (1.5 if ".0." in name else 0.01) * torch.randn(
                    value.shape, generator=torch.Generator().manual_seed(at)
                )
        model.save_pretrained(root / f"trained-{method}")
    return root


def deltas(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    parts = {name.removeprefix("base_model.model."): part for name, part in model.named_modules()}
    return {name: part.get_delta_weight(adapter) for name, part in parts.items() if hasattr(part, "lora_A")}  # type: ignore[operator]


@pytest.mark.parametrize("method", ["lora", "pissa"])
@pytest.mark.parametrize("options", [{"reduce_intruders": 0.75}, {"reduce_intruders": 0.2, "intruder_cosine": 0.7}])
def test_it_is_what_peft_makes_of_the_loaded_model(
    root: Path, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    trained = root / f"trained-{method}"
    plain = convert(trained, root / method, tmp_path / "plain")
    done = convert(trained, root / method, tmp_path / "fewer", **options)
    model = PeftModel.from_pretrained(original(root), plain.folder)
    before = deltas(model, "default")
    keep, cosine = options["reduce_intruders"], options.get("intruder_cosine", 0.5)
    with torch.no_grad():
        reduce_intruder_dimension(model, logging_sink=None, mitigation_lambda=keep, threshold_epsilon=cosine)
    expected = deltas(model, "intruder_reduced")
    found = deltas(PeftModel.from_pretrained(original(root), done.folder), "default")
    assert found.keys() == expected.keys() == {module.module for module in done.modules}
    for module in done.modules:
        assert near(found[module.module], expected[module.module], 1e-4)
        change = before[module.module].double()
        taken = float((change - found[module.module].double()).norm() / change.norm())
        assert module.taken == pytest.approx(taken, rel=1e-3, abs=1e-6)
        assert (module.taken > 1e-3) == bool(module.intruders)
    assert any(module.intruders for module in done.modules) and not all(module.intruders for module in done.modules)


def test_what_has_no_intruders_stays_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    W, B, A = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((40, 30), (40, 2), (2, 30)))
    found = reduce_intruders(W, 1e-3 * B, A, Reduction(0.75))
    assert found.intruders == 0 and torch.equal(found.B, 1e-3 * B) and torch.equal(found.A, A)


@pytest.mark.parametrize("options", [{"reduce_intruders": 1.5}, {"reduce_intruders": 0.5, "intruders_of": 0}])
def test_shares_and_numbers_out_of_range_are_refused(root: Path, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a share of 0 to 1"):
        convert(root / "trained-lora", root / "lora", tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()


def test_a_base_on_the_hub_is_not_asked_because_a_manifest_says_so(root: Path) -> None:
    manifest = read_manifest(root / "lora")
    source = {**manifest.source, "location": "hf://org/model", "revision": "0" * 40}
    with pytest.raises(TargetError, match="not on this machine"):
        Originals.of(replace(manifest, source=source), root / "lora", open_adapter(root / "lora" / "ailora_init"))
