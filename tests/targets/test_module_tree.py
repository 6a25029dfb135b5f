"""Planned modules against the real class on the meta device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools import initialize
from ailora_tools.errors import TargetError
from ailora_tools.progress import Silent
from ailora_tools.targets import module_tree
from ailora_tools.targets.architectures import PROVEN_WITH
from ailora_tools.targets.built_class import look
from ailora_tools.targets.module_tree import ModuleCheck, Verdict

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 64,
}  # fmt: skip
Q, V = (f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qv")


class Listening(Silent):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def test_what_is_there_and_what_is_not() -> None:
    found = look({"config": CONFIG, "modules": [Q, V, "model.layers.7.self_attn.q_proj"], "targets": [Q, "v_proj"]})
    assert found["missing"] == ["model.layers.7.self_attn.q_proj"]
    assert found["extra"] == ["model.layers.1.self_attn.v_proj"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "no class named"),
        ({"architectures": 3}, "no class named"),
        ({**CONFIG, "architectures": ["BrandNewForCausalLM"]}, "has no class BrandNewForCausalLM"),
        ({**CONFIG, "hidden_size": "wide"}, "LlamaForCausalLM could not be built"),
    ],
)
def test_what_cannot_be_told_is_a_notice_and_no_error(config: dict[str, object], reason: str) -> None:
    (notice,) = ModuleCheck(config, [Q], ["q_proj"], "here").finish().notices
    assert "unchecked" in notice and reason in notice


def test_a_process_of_its_own_gives_the_same_answer() -> None:
    good = ModuleCheck(CONFIG, [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)], ["q_proj"], "here")
    bad = ModuleCheck(CONFIG, ["model.layers.9.self_attn.q_proj"], ["model.layers.9.self_attn.q_proj"], "here")
    assert good._process is not None and good.finish() == Verdict(exact=True)
    with pytest.raises(
        TargetError, match=r"here: LlamaForCausalLM has no model\.layers\.9.*\.\nIn transformers 5.*not there, or have"
    ):
        bad.finish()
    stopped = ModuleCheck(CONFIG, [Q], [Q], "here")
    stopped.cancel()
    assert stopped._process is not None and stopped._process.returncode is not None


def test_without_transformers_the_table_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_tree, "find_spec", lambda name: None)
    assert "transformers is not installed" in ModuleCheck(CONFIG, [Q], ["q_proj"], "here").finish().notices[0]


def test_init_refuses_modules_that_the_class_lacks(tmp_path: Path) -> None:
    tensors = {name.replace("model.", "backbone."): value for name, value in llama_tensors().items()}
    folder = write_checkpoint(tmp_path / "model", tensors, **{**CONFIG, "model_type": "brand_new"})
    with pytest.raises(TargetError, match=r"LlamaForCausalLM has no backbone\.layers\.0\.self_attn\.q_proj"):
        initialize(folder, 4, output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "and leaves nothing behind"


def test_the_proven_version_is_the_one_that_the_tests_run_with() -> None:
    """The rows are held against the installed classes here, so that `init` need not ask again."""
    assert transformers.__version__.startswith(PROVEN_WITH)


def test_full_paths_where_short_names_would_hit_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class has a third layer, which the file lacks; asked of a transformers that the tests do not know."""
    monkeypatch.setattr(module_tree, "PROVEN_WITH", "0.0.")
    folder = write_checkpoint(tmp_path / "model", llama_tensors(), **{**CONFIG, "num_hidden_layers": 3})
    config = json.loads((initialize(folder, 4, output=tmp_path / "out").adapter / "adapter_config.json").read_text())
    expected = [f"model.layers.{layer}.self_attn.{leaf}_proj" for layer in (0, 1) for leaf in "qv"]
    assert config["target_modules"] == expected


def test_names_for_another_major_version(tmp_path: Path) -> None:
    paths = [f"vit.encoder.layer.0.attention.attention.{leaf}" for leaf in ("query", "value")]
    tensors = {f"{path}.weight": torch.randn(8, 8) for path in paths}
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    folder = write_checkpoint(tmp_path / "model", tensors, **config)
    heard = Listening()
    result = initialize(folder, 2, transformers_major=4, output=tmp_path / "out", progress=heard)
    modules = {record.module for record in result.manifest.modules}  # type: ignore[union-attr]
    assert modules == set(paths)
    assert any("unchecked: " in text and "transformers 4" in text for text in heard.notices)


def test_the_option(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", llama_tensors(), **CONFIG)
    command = [sys.executable, "-m", "ailora_tools", "init", str(folder), "--rank", "4", "-o", str(tmp_path / "out")]
    done = subprocess.run([*command, "--transformers-major", "6"], capture_output=True, text=True)
    assert done.returncode == 2 and "'auto', '4', '5'" in done.stderr
    done = subprocess.run([*command, "--transformers-major", "5"], capture_output=True, text=True)
    assert done.returncode == 0 and "unchecked" not in done.stderr
