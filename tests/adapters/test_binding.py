"""Every key of an adapter binds to the place it is for, whatever wrapped the model, or is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import ALL, near
from kit.families import build, output
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools import convert, initialize, merge
from ailora_tools.adapters.binding import Directory
from ailora_tools.adapters.keys import FROZEN, WHOLE, Key, read_key
from ailora_tools.adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ailora_tools.errors import TargetError
from ailora_tools.progress import Silent

_ONE = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "path", "part"),
    [
        ("base_model.model.model.q.lora_A.weight", "model.q", "A"),
        ("base_model.model.model.q.lora_B.default.weight", "model.q", "B"),
        ("q.lora_B.bias", "q", "bias"),
        ("q.lora_B.default.bias", "q", "bias"),
        ("base_model.model.base_model.model.model.q.lora_A.weight", "model.q", "A"),
        ("module.base_model.model.model.q.lora_A.weight", "model.q", "A"),
        ("base_model.model._orig_mod.model.q.lora_A.weight", "model.q", "A"),
        ("base_model.model.model.layers.0._fsdp_wrapped_module.q.lora_A.weight", "model.layers.0.q", "A"),
        ("base_model.model.model.layers.0.module.q.lora_A.weight", "model.layers.0.q", "A"),
        ("base_model.model.embed.lora_embedding_A", "embed", "embedding A"),
        ("base_model.model.embed.lora_embedding_B.default", "embed", "embedding B"),
        ("base_model.model.q.lora_magnitude_vector", "q", "magnitude"),
        ("base_model.model.q.lora_magnitude_vector.default.weight", "q", "magnitude"),
        ("base_model.model.lm_head.base_layer.weight", "lm_head.weight", WHOLE),
        ("base_model.model.q.base_layer.bias", "q.bias", WHOLE),
        ("base_model.model.score.modules_to_save.default.weight", "score.weight", WHOLE),
        ("base_model.model.score.modules_to_save.default.dense.weight", "score.dense.weight", WHOLE),
        ("base_model.model.score.modules_to_save.weight", "score.weight", WHOLE),
        ("base_model.model.score.original_module.weight", "score", FROZEN),
        ("base_model.model.embed.token_adapter.trainable_tokens_delta", "embed", "tokens"),
        ("base_model.model.embed.token_adapter.trainable_tokens_original.default", "embed", FROZEN),
        ("base_model.model.embed.token_adapter.base_layer.weight", "embed", FROZEN),
        ("lora_unet_down.lora_down.weight", "lora_unet_down.lora_down.weight", ""),
    ],
)
def test_a_key_is_taken_apart(name: str, path: str, part: str) -> None:
    assert read_key(name) == Key(path, part)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("model.layers.0.q.weight", ["a"]),
        ("layers.0.q.weight", ["a"]),  # an inner prefix is missing
        ("lm.model.layers.0.q.weight", ["a"]),  # one is there that the base has not
        ("q.weight", ["a", "b"]),  # may be either
        ("vision_tower.layers.0.k.weight", []),  # another part of a model is not this one
        ("layers.1.q.weight", []),
        ("language_model.model.layers.0.q.weight", ["a"]),  # of another major of transformers
    ],
)
def test_a_name_finds_what_it_may_mean(path: str, found: list[str]) -> None:
    names = {"a": ["model.layers.0.q.weight"], "b": ["vision.layers.7.q.weight"], "c": ["layers.0.k.weight"]}
    assert Directory(names).find(path) == found


def _model(folder: Path) -> tuple[Path, Path, Tensor]:
    """A Llama, an adapter with a rank and an alpha of its own in one module, and what the two put out."""
    build("llama").save_pretrained(folder / "model")
    base: Any = type(build("llama")).from_pretrained(folder / "model")  # type: ignore[attr-defined]
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={_ONE: 2}, alpha_pattern={_ONE: 16},
        init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(base.eval(), config).eval()
    model.save_pretrained(folder / "trained")
    return folder / "model", folder / "trained", output(model, ALL["llama"].inputs())


def _rewrite(folder: Path, names: Callable[[str], str], more: dict[str, Tensor] | None = None) -> None:
    held = {names(name): value for name, value in load_file(folder / ADAPTER_WEIGHTS).items()}
    save_file({**held, **(more or {})}, folder / ADAPTER_WEIGHTS)


FORMS: dict[str, Callable[[str], str]] = {
    "as PEFT writes it": lambda name: name,
    "an inner prefix missing": lambda name: name.replace("base_model.model.model.", "base_model.model."),
    "without PEFT's prefix": lambda name: name.removeprefix("base_model.model."),
    "PEFT's prefix twice": lambda name: f"base_model.model.{name}",
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled inside": lambda name: re.sub(r"(layers\.\d+)\.", r"\1._orig_mod.", name),
    "DDP": lambda name: f"module.{name}",
    "DDP inside": lambda name: name.replace("base_model.model.", "base_model.model.module."),
    "inside another model": lambda name: name.replace("base_model.model.", "base_model.model.lm_q."),
    "a name of the adapter": lambda name: name.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_names_merges_to_the_same(form: str, tmp_path: Path) -> None:
    base, trained, expected = _model(tmp_path)
    _rewrite(trained, FORMS[form])
    merge(base, trained, tmp_path / "merged")
    merged = type(build("llama")).from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    assert near(output(merged, ALL["llama"].inputs()), expected, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_names_converts(form: str, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, output=tmp_path / "init")
    shutil.copytree(made.adapter, tmp_path / "trained")
    _rewrite(tmp_path / "trained", FORMS[form])
    done = convert(tmp_path / "trained", made.folder, tmp_path / "plain")
    assert not any(module.changed for module in done.modules), "it is the start itself"


def _other_places(name: str) -> str:
    return name.replace("layers.1.", "layers.7.")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a module that is not there": (
        lambda folder: _rewrite(folder, _other_places), r"layers.7.self_attn.q_proj is not in the base"
    ),
    "two adapters in one file": (
        lambda folder: _rewrite(folder, str, {f"base_model.model.{_ONE}.lora_A.second.weight": torch.ones(2, 36)}),
        "are for the same place",
    ),
    "a name that may mean several": (
        lambda folder: _rewrite(folder, lambda name: name.replace("base_model.model.model.layers.1.self_attn.", "")),
        "q_proj may be any of",
    ),
    "a part that is not known": (
        lambda folder: _rewrite(folder, str, {f"base_model.model.{_ONE}.lora_C.weight": torch.ones(2)}),
        "lora_C.weight cannot be merged",
    ),
    "a tensor without a place": (
        lambda folder: _rewrite(folder, str, {"base_model.model.score.weight": torch.ones(2, 36)}),
        "score.weight is not in the base",
    ),
    "another rank than the config says": (
        lambda folder: _configure(folder, rank_pattern={}), r"has rank 2, adapter_config.json says 4"
    ),
    "a layer of which nothing was saved": (
        lambda folder: _keep(folder, lambda name: "layers.1." not in name), "target_modules hit 2 modules without"
    ),
    "a role of which nothing was saved": (
        lambda folder: _keep(folder, lambda name: "v_proj" not in name), "target_modules hit 2 modules without tensors"
    ),
    "a head that was adapted and not saved": (
        lambda folder: _configure(folder, target_modules=["q_proj", "v_proj", "lm_head"]),
        "target_modules name lm_head, of which there is no tensor",
    ),
    "a head that was not saved": (
        lambda folder: _configure(folder, modules_to_save=["lm_head"]), "modules_to_save names lm_head"
    ),
    "rows that were not saved": (
        lambda folder: _configure(folder, trainable_token_indices={"embed_tokens": [3]}), "no new rows of embed_tokens"
    ),
    "biases of B that were not saved": (lambda folder: _configure(folder, lora_bias=True), "has no lora_B.bias"),
}  # fmt: skip


class Told(Silent):
    """Remembers notices."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def _configure(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, **fields}))


def _keep(folder: Path, wanted: Callable[[str], bool]) -> None:
    held = load_file(folder / ADAPTER_WEIGHTS)
    save_file({name: value for name, value in held.items() if wanted(name)}, folder / ADAPTER_WEIGHTS)


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_bind_or_is_missing_is_refused_by_name(case: str, tmp_path: Path) -> None:
    base, trained, _ = _model(tmp_path)
    change, told = REFUSED[case]
    change(trained)
    with pytest.raises(TargetError, match=told):
        merge(base, trained, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_layers_that_were_left_out_on_purpose_are_not_missed(tmp_path: Path) -> None:
    base, trained, _ = _model(tmp_path)
    _keep(trained, lambda name: "layers.1." in name)
    _configure(trained, layers_to_transform=[1])
    assert len(merge(base, trained, tmp_path / "merged").modules) == 2


@pytest.mark.parametrize("name", ["non_lora_state_dict.bin", "non_lora_trainables.bin", "adapter_model.bin"])
def test_other_weights_beside_an_adapter_are_told(name: str, tmp_path: Path) -> None:
    base, trained, _ = _model(tmp_path)
    (trained / name).write_bytes(b"0")
    (trained / "optimizer.pt").write_bytes(b"0")
    told = Told()
    merge(base, trained, tmp_path / "merged", progress=told)
    assert [text for text in told.texts if name in text and "optimizer" not in text]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"modules_to_save": ["score"]}, "modules_to_save names score"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "target_modules name k_proj"),
        ({"trainable_token_indices": [3]}, "no new rows"),
    ],
)
def test_convert_refuses_what_the_config_promises_and_the_file_lacks(
    fields: dict[str, Any], told: str, tmp_path: Path
) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, output=tmp_path / "init")
    shutil.copytree(made.adapter, tmp_path / "trained")
    _configure(tmp_path / "trained", **fields)
    with pytest.raises(TargetError, match=told):
        convert(tmp_path / "trained", made.folder, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_two_alphas_for_one_module_are_told(tmp_path: Path) -> None:
    """The first counts, but PEFT sorts the keys on saving, and loads another adapter than was trained."""
    base, trained, _ = _model(tmp_path)
    progress = Told()
    _configure(trained, alpha_pattern={_ONE: 16, "q_proj": 4, "v_proj": 8})
    merge(base, trained, tmp_path / "merged", progress=progress)
    (told,) = [text for text in progress.texts if "alpha_pattern" in text]
    assert f"all match {_ONE}: the first counts" in told
