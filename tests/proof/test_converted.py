"""`verify` of converted adapters, and of any adapter against any base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.merges import edit, write_adapter, write_base
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools import convert, initialize, merge, verify
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.errors import AiloraError, CheckpointError, OptionError
from ailora_tools.verbs.verify import Verification

Tensors = dict[str, Tensor]
RANK = 4
NAMES = {
    role: [f"base_model.model.model.layers.{layer}.self_attn.{role}_proj.lora_" for layer in (0, 1)] for role in "qv"
}


def failed(result: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in result.checks if not check.holds}


@dataclass(frozen=True)
class Trained:
    """Folders: the original, the start, the trained adapter, the plain LoRA."""

    model: Path
    start: Path
    trained: Path
    plain: Path


def move(start: Path, folder: Path, seed: int) -> Path:
    """The adapter of a start as training leaves it."""
    shutil.copytree(start, folder)
    generator = torch.Generator().manual_seed(seed)
    held = load_file(start / ADAPTER_WEIGHTS)
    moved = {name: W + 0.1 * W.abs().max() * torch.randn(W.shape, generator=generator) for name, W in held.items()}
    save_file(moved, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("converted")
    write_checkpoint(root / "model", llama_tensors(hidden=48, kv=48, dtype=torch.float32))
    start = initialize(root / "model", RANK, output=root / "start")
    trained = move(start.adapter, root / "trained", 5)
    convert(trained, start.folder, root / "plain")
    return Trained(root / "model", start.folder, trained, root / "plain")


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"dtype": "bfloat16"}, {"dtype": "float16", "rank": 5},
                                     {"keep_ranks": True}], ids=str)  # fmt: skip
def test_what_convert_wrote_holds_by_its_record_and_without_it(
    options: dict[str, Any], made: Trained, tmp_path: Path
) -> None:
    convert(made.trained, made.start, tmp_path / "plain", **options)
    own = verify(tmp_path / "plain")
    assert own.holds and own.what == "converted", failed(own)
    (tmp_path / "plain/ailora-result.json").unlink()
    given = verify(tmp_path / "plain", init=made.start, trained=made.trained)
    assert given.holds and [one["module"] for one in given.matrices] == [one["module"] for one in own.matrices]


def test_other_layers_of_zeros_and_a_start_that_took_nothing_hold(made: Trained, tmp_path: Path) -> None:
    few = initialize(made.model, RANK, layers="0", output=tmp_path / "few")
    convert(move(few.adapter, tmp_path / "moved", 7), few.folder, tmp_path / "all", all_layers=True)
    assert verify(tmp_path / "all").holds
    mica = initialize(made.model, RANK, method="mica", output=tmp_path / "mica")
    convert(move(mica.adapter, tmp_path / "trained", 8), mica.folder, tmp_path / "kept", dtype="bfloat16")
    assert verify(tmp_path / "kept").holds


def product(held: Tensors, stem: str) -> Tensor:
    return held[f"{stem}B.weight"] @ held[f"{stem}A.weight"]


Change = Callable[[Tensors, Trained], Tensors | None]
FAULTS: Mapping[str, tuple[Change, str, str]] = {}


def told(check: str, words: str) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        FAULTS[change.__name__] = change, check, words  # type: ignore[index]
        return change

    return add


@told("modules", "layers.1.self_attn.q_proj missing")
def a_module_is_missing(held: Tensors, made: Trained) -> None:
    for side in "AB":
        del held[f"{NAMES['q'][1]}{side}.weight"]


@told("change", "has the change twice")
def it_is_twice_too_large(held: Tensors, made: Trained) -> None:
    held.update({name: 2 * W for name, W in held.items() if "lora_B" in name})


@told("change", "has 0.25 times the change")
def it_is_scaled_wrongly(held: Tensors, made: Trained) -> None:
    held.update({name: W / 4 for name, W in held.items() if "lora_B" in name})


@told("change", "has -1 times the change")
def it_has_the_other_sign(held: Tensors, made: Trained) -> None:
    held.update({name: -W for name, W in held.items() if "lora_B" in name})


@told("change", "is the trained adapter itself: the start was not subtracted")
def the_start_was_not_subtracted(held: Tensors, made: Trained) -> Tensors:
    return _filled(load_file(made.trained / ADAPTER_WEIGHTS))


@told("change", "is the start, not what training changed")
def it_is_the_start(held: Tensors, made: Trained) -> Tensors:
    return _filled(load_file(made.start / "ailora_init" / ADAPTER_WEIGHTS))


@told("change", "has the change of model.layers.0.self_attn.v_proj")
def q_and_v_are_swapped(held: Tensors, made: Trained) -> Tensors:
    return {_swapped(name): W for name, W in held.items()}


@told("change", "changes nothing")
def a_module_is_zero(held: Tensors, made: Trained) -> None:
    held[f"{NAMES['v'][0]}B.weight"].zero_()


@told("change", "has 3 components of the change, its rank says 8")
def components_are_lost(held: Tensors, made: Trained) -> None:
    for side in "AB":
        name = f"{NAMES['q'][0]}{side}.weight"
        W = held[name].clone()
        (W[3:] if side == "A" else W[:, 3:]).zero_()
        held[name] = W


@told("modules", "o_proj not in the start")
def a_module_more(held: Tensors, made: Trained) -> None:
    for side in "AB":
        held[f"{NAMES['q'][0]}{side}.weight".replace("q_proj", "o_proj")] = held[
            f"{NAMES['q'][0]}{side}.weight"
        ].clone()


@told("change", "of another training, or changed")
def it_is_of_another_training(held: Tensors, made: Trained) -> None:
    generator = torch.Generator().manual_seed(2)
    held.update({name: W.std() * torch.randn(W.shape, generator=generator) for name, W in held.items()})


@told("change", "off, more than its rank and its dtype explain")
def it_was_rounded_on_the_way(held: Tensors, made: Trained) -> None:
    held.update({name: W.bfloat16().float() for name, W in held.items()})


@told("kept", "lm_head.weight not in the trained adapter")
def a_head_was_added(held: Tensors, made: Trained) -> None:
    held["base_model.model.lm_head.weight"] = torch.ones(4, 4)


def _filled(held: Tensors) -> Tensors:
    """At the rank of the plain adapter, twice that of the start."""
    pad = torch.nn.functional.pad
    return {name: pad(W, (0, 0, 0, RANK) if ".lora_A" in name else (0, RANK)) for name, W in held.items()}


def _swapped(name: str) -> str:
    return name.replace("q_proj", "#").replace("v_proj", "q_proj").replace("#", "v_proj")


@pytest.mark.parametrize("name", FAULTS)
def test_each_mistake_is_told(name: str, made: Trained, tmp_path: Path) -> None:
    change, check, words = FAULTS[name]
    shutil.copytree(made.plain, tmp_path / "plain")
    held = load_file(made.plain / ADAPTER_WEIGHTS)
    held = change(held, made) or held
    save_file({one: W.contiguous() for one, W in held.items()}, tmp_path / "plain" / ADAPTER_WEIGHTS, {"format": "pt"})
    found = verify(tmp_path / "plain", init=made.start, trained=made.trained)
    assert words in failed(found)[check], failed(found)


def test_a_plain_adapter_that_names_the_residual_base_is_told(made: Trained, tmp_path: Path) -> None:
    shutil.copytree(made.plain, tmp_path / "plain")
    start = json.loads((made.start / "ailora_init/adapter_config.json").read_text())["base_model_name_or_path"]
    edit(tmp_path / "plain/adapter_config.json", {"base_model_name_or_path": start})
    assert "the original is" in failed(verify(tmp_path / "plain"))["base"]


def test_a_trained_adapter_that_lost_a_module_is_told(made: Trained, tmp_path: Path) -> None:
    shutil.copytree(made.trained, tmp_path / "trained")
    held = load_file(made.trained / ADAPTER_WEIGHTS)
    kept = {name: W for name, W in held.items() if not name.startswith(NAMES["q"][1])}
    save_file(kept, tmp_path / "trained" / ADAPTER_WEIGHTS, {"format": "pt"})
    found = verify(made.plain, init=made.start, trained=tmp_path / "trained")
    assert "missing in the trained adapter" in failed(found)["modules"]


def test_a_converted_adapter_merged_into_the_original_holds(made: Trained, tmp_path: Path) -> None:
    merge(made.model, made.plain, tmp_path / "merged")
    assert verify(tmp_path / "merged").holds
    merge(made.start, made.trained, tmp_path / "residual")
    assert verify(tmp_path / "residual").holds
    crossed = failed(verify(tmp_path / "residual", base=made.model, adapter=made.trained))
    assert "would count twice" in crossed["adapter"]


def test_an_adapter_fits_its_base_key_by_key(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base)
    found = verify(adapter, base=base)
    assert found.holds and found.what == "adapter" and found.source == str(base)
    assert {one["key"]: one["tensor"] for one in found.matrices} == {
        f"model.layers.{layer}.self_attn.{role}_proj": f"model.layers.{layer}.self_attn.{role}_proj.weight"
        for layer in (0, 1) for role in "qv"
    }  # fmt: skip
    assert verify(adapter).source == str(base), "the base that its config names is here"
    edit(adapter / "adapter_config.json", {"base_model_name_or_path": "org/model"})
    alone = verify(adapter)
    assert alone.holds and alone.source is None and alone.basis == "itself alone"


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {name.replace(old, new): W for name, W in held.items()}


MISFITS: Mapping[str, tuple[Callable[[Tensors], Tensors], str, str]] = {
    "another layer": (
        renamed("layers.1", "layers.7"), "keys",
        "2 of 4 bind nowhere: model.layers.7.self_attn.q_proj is not in the base",
    ),
    "another prefix": (renamed("self_attn", "attention"), "keys", "4 of 4 bind nowhere"),
    "another width": (
        lambda held: {name: W[:, :32] if ".lora_A" in name else W for name, W in held.items()}, "shapes", "has shape",
    ),
    "a layer is missing": (
        lambda held: {name: W for name, W in held.items() if "layers.1" not in name}, "complete", "without tensors",
    ),
    "NaN": (lambda held: {name: W * torch.nan for name, W in held.items()}, "complete", "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_an_adapter_that_does_not_fit_is_told(name: str, tmp_path: Path) -> None:
    change, check, words = MISFITS[name]
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base)
    held = change(load_file(adapter / ADAPTER_WEIGHTS))
    save_file({one: W.contiguous() for one, W in held.items()}, adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    assert words in failed(verify(adapter, base=base))[check]


def test_keys_under_another_prefix_are_named(tmp_path: Path) -> None:
    """They bind here, and servers that ask for the very name pass them over without a word."""
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base)
    held = load_file(adapter / ADAPTER_WEIGHTS)
    wrapped = {
        name.replace("base_model.model.model.", "base_model.model.language_model.model."): W for name, W in held.items()
    }
    save_file(wrapped, adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    keys = next(check for check in verify(adapter, base=base).checks if check.name == "keys")
    assert keys.holds and "4 under another name than the class has" in keys.detail


def test_a_strangers_record_costs_a_message_and_nothing_else(made: Trained, tmp_path: Path) -> None:
    shutil.copytree(made.plain, tmp_path / "plain")
    path = tmp_path / "plain/ailora-result.json"
    right = json.loads(path.read_text())
    for key in (*right, "base"):
        for value in (None, 5, -1.5, "x", "/nowhere", [5], [[]], {"a": 1}, [{"module": 1}], True):
            path.write_text(json.dumps({**right, key: value}))
            with suppress(AiloraError):
                verify(tmp_path / "plain")
    path.write_text('{"verb": "merge"}')
    with pytest.raises(OptionError, match="--base and --adapter"):
        verify(tmp_path / "plain")
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        verify(tmp_path / "plain")


def test_what_does_not_belong_together_is_refused(made: Trained) -> None:
    for folder, given in (
        (made.plain, {"source": made.model}),
        (made.start, {"base": made.model}),
        (made.plain, {"init": made.start, "base": made.model}),
    ):
        with pytest.raises(OptionError, match="is checked against"):
            verify(folder, **given)
