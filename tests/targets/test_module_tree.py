"""Planned modules against the real class on the meta device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools import initialize
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import TargetError
from ailora_tools.progress import Silent
from ailora_tools.targets import module_tree
from ailora_tools.targets.built_class import look
from ailora_tools.targets.module_tree import ModuleCheck, UnbuiltError, check_modules
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.proven import VERSIONS
from ailora_tools.targets.selection import Selection
from ailora_tools.targets.verdict import Verdict, judge

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


Q_OF = "model.layers.{}.self_attn.q_proj"


def question(modules: list[str], targets: list[str], held: list[str] = []) -> dict[str, object]:  # noqa: B006
    return {"config": CONFIG, "modules": dict.fromkeys(modules, (48, 48)), "targets": targets, "held": held}


def checked(folder: Path, layers: int = 2, **config: object) -> ModuleCheck:
    """The check for a file of so many layers, of a type that the table does not know."""
    described = {**CONFIG, "model_type": "brand_new", **config}
    checkpoint = open_checkpoint(write_checkpoint(folder, llama_tensors(layers=layers), **described))
    return check_modules(checkpoint, make_plan(checkpoint), Selection(), 5)


def test_what_is_there_and_what_is_not() -> None:
    found = look(question([Q, V, Q_OF.format(7)], [Q, "v_proj"]))
    assert found["missing"] == [Q_OF.format(7)]
    assert found["extra"] == ["model.layers.1.self_attn.v_proj"]


def test_modules_of_that_size_which_the_file_does_not_name_are_told() -> None:
    """They may be what is missing, under another name."""
    every = [f"model.layers.{layer}.self_attn.{leaf}_proj" for layer in (0, 1) for leaf in "qo"]
    assert look(question(["query"], ["query"]))["unclaimed"] == {path: [48, 48] for path in every}
    assert look(question(["query"], ["query"], held=every))["unclaimed"] == {}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": []}, "no class named"),
        ({"architectures": ["BrandNewForCausalLM"]}, "has no class BrandNewForCausalLM"),
        ({"hidden_size": "wide"}, "LlamaForCausalLM could not be built"),
    ],
)
def test_what_cannot_be_told_is_a_notice_and_no_error(config: dict[str, object], reason: str, tmp_path: Path) -> None:
    verdict = checked(tmp_path, **config).finish()
    assert "unchecked" in verdict.notices[0] and reason in verdict.notices[0] and not verdict.known


def test_a_process_of_its_own_gives_the_same_answer(tmp_path: Path) -> None:
    good, more = checked(tmp_path / "good"), checked(tmp_path / "more", 3, num_hidden_layers=2)
    assert good._process is not None and good.finish() == Verdict(exact=True)
    with pytest.raises(UnbuiltError) as caught:
        more.finish()
    assert caught.value.modules == tuple(f"model.layers.2.self_attn.{leaf}_proj" for leaf in "qv")
    stopped = checked(tmp_path / "stopped")
    stopped.cancel()
    assert stopped._process is not None and stopped._process.returncode is not None


def test_without_transformers_the_table_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_tree, "find_spec", lambda name: None)
    assert "transformers is not installed" in checked(tmp_path).finish().notices[0]


def test_init_refuses_modules_that_the_class_lacks(tmp_path: Path) -> None:
    tensors = {name.replace("model.", "backbone."): value for name, value in llama_tensors().items()}
    folder = write_checkpoint(tmp_path / "model", tensors, **{**CONFIG, "model_type": "brand_new"})
    with pytest.raises(TargetError, match=r"LlamaForCausalLM has no backbone\.layers\.0\.self_attn\.q_proj"):
        initialize(folder, 4, output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "and leaves nothing behind"


def test_a_type_of_the_table_under_other_names_wants_another_version(tmp_path: Path) -> None:
    """As ViT before the release that renamed its modules: no row is lacking."""
    plan = make_plan(open_checkpoint(write_checkpoint(tmp_path, llama_tensors(), **CONFIG)))
    gone = [carrier.module for carrier in plan.carriers]
    answer = {"class": "LlamaForCausalLM", "version": "4.20.1", "missing": gone, "extra": [], "unclaimed": {}}
    with pytest.raises(TargetError) as caught:
        judge(answer, plan, "here")
    assert f"such as transformers {VERSIONS[-1]}: install one of those" in caught.value.hint
    with pytest.raises(TargetError) as caught:
        judge({**answer, "version": f"{VERSIONS[-1]}.0"}, plan, "here")
    assert "needs a row" in caught.value.hint


def test_full_paths_where_short_names_would_hit_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class has a third layer, which the file lacks; asked of a transformers that the tests do not know."""
    monkeypatch.setattr(module_tree, "proven_with", lambda *_: False)
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
