"""Tensors that the class does not build, through every verb: by what config.json counts, and by asking the class."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from kit.adapters import near
from kit.asked_here import Here
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build, output
from kit.interruption import Interrupting, join_workers
from kit.surplus import add, further_layers, prediction_layers
from peft import PeftModel
from safetensors.torch import load_file

from ailora_tools import analyze, convert, initialize, inspect_checkpoint, merge, verify
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import OptionError, TargetError
from ailora_tools.progress import Silent
from ailora_tools.proof import built
from ailora_tools.targets import as_built, module_tree
from ailora_tools.targets import plan as planning
from ailora_tools.targets.counted import Sorted
from ailora_tools.targets.linear import Roles
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.projections import Plan
from ailora_tools.verbs import initialize as verb

CONFIG = {
    "model_type": "brand_new", "architectures": ["LlamaForCausalLM"], "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 64,
}  # fmt: skip
SURPLUS = [f"{path}.self_attn.{leaf}_proj" for path in ("model.layers.2", "mtp.layers.0") for leaf in "qv"]
WORDS = {"input_ids": torch.arange(3, 12)[None]}


class Listening(Silent):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def unknown_type(folder: Path, **changes: object) -> Path:
    """A Llama under a name that the table does not have, with a third layer and one for prediction in its file."""
    tensors = llama_tensors(layers=3)
    third = {name: value.clone() for name, value in tensors.items() if ".layers.2." in name}
    mtp = {name.replace("model.layers.2", "mtp.layers.0"): value for name, value in third.items()}
    return write_checkpoint(folder, {**tensors, **mtp}, **{**CONFIG, **changes})


# ---- config.json counts


@pytest.mark.parametrize("name", ["llama", "deepseek-v3, latent", "qwen3-next, gated queries"])
def test_an_adapter_s_life_leaves_the_layers_for_prediction_alone(name: str, tmp_path: Path) -> None:
    """PEFT loads every tensor of the adapter; trained, it becomes a plain LoRA; merged, the surplus is as it was."""
    source, folder = tmp_path / "source", tmp_path / "out"
    model = build(name)
    model.save_pretrained(source)
    plan, tensors = make_plan(open_checkpoint(source)), load_file(source / "model.safetensors")
    surplus = {**further_layers(tensors, plan), **prediction_layers(tensors, plan)}
    add(source, surplus)
    initialize(source, 2, output=folder)
    assert verify(folder).holds
    start = PeftModel.from_pretrained(type(model).from_pretrained(folder), folder / "ailora_init", is_trainable=True)
    assert near(output(start.eval(), WORDS), output(model, WORDS))
    loaded = {key for key in start.state_dict() if "lora_" in key}
    assert len(loaded) == len(load_file(folder / "ailora_init" / "adapter_model.safetensors"))
    with torch.no_grad():
        for key, value in start.named_parameters():
            if "lora_B" in key:
                value.add_(0.01)
    start.save_pretrained(tmp_path / "trained")
    assert convert(tmp_path / "trained", init=folder, output=tmp_path / "plain").folder.is_dir()
    merge(folder, tmp_path / "trained", output=tmp_path / "merged")
    for written in (folder, tmp_path / "merged"):
        held = load_file(written / "model.safetensors")
        assert all(torch.equal(held[key], value) for key, value in surplus.items())


@pytest.mark.parametrize("gone", [False, True])
def test_an_older_folder_is_told_what_its_class_does_not_build(
    gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `init` wrote it before it counted, with and without the source."""
    source = write_checkpoint(tmp_path / "source", llama_tensors(layers=3), num_hidden_layers=2)
    with monkeypatch.context() as before:
        before.setattr(planning, "sort_out", lambda matches, *_: Sorted(tuple(matches), {}, True, {"llama"}))
        folder = initialize(source, 4, output=tmp_path / "out").folder
    if gone:
        source.rename(tmp_path / "gone")
    found = verify(folder)
    told = {check.name: check.detail for check in found.checks if not check.holds}
    assert "2 are not built by the class, because they lie beyond the 2 layers" in told["modules"]
    assert "model.layers.2.self_attn.q_proj" in told["modules"]
    assert gone or "model.layers.2.self_attn.q_proj" in told["plan"]


# ---- the class is asked


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The source, what `init` made of it, and what it said."""
    root, heard = tmp_path_factory.mktemp("asked"), Listening()
    source = unknown_type(root / "source")
    initialize(source, 4, output=root / "out", progress=heard)
    return source, root / "out", heard.notices


def test_what_the_class_lacks_is_left_alone_and_told(asked: tuple[Path, Path, list[str]]) -> None:
    source, folder, notices = asked
    before, after = (load_file(path / "model.safetensors") for path in (source, folder))
    assert sorted(name for name in before if not torch.equal(before[name], after[name])) == [
        f"model.layers.{layer}.self_attn.{leaf}_proj.weight" for layer in (0, 1) for leaf in "qv"
    ]
    told = [text for text in notices if "no module in the class that loads them" in text]
    assert len(told) == 1 and all(f"{module}.weight" in told[0] for module in SURPLUS)
    assert len(notices) == len(set(notices)), "nothing is told twice"
    manifest = json.loads((folder / "ailora.json").read_text())
    assert manifest["settings"]["unbuilt"] == sorted(SURPLUS)
    config = json.loads((folder / "ailora_init" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_verify_asks_again(asked: tuple[Path, Path, list[str]]) -> None:
    found = verify(asked[1])
    assert found.holds
    assert found.checks[-1].detail == "the class builds all 4"


def test_verify_asks_where_the_version_is_not_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same folder under a transformers whose class has the modules, and under one whose class has other names."""
    source = write_checkpoint(tmp_path / "source", llama_tensors(), **{**CONFIG, "model_type": "llama"})
    folder = initialize(source, 4, output=tmp_path / "out").folder
    assert verify(folder).checks[-1].detail == "the class builds all 4, by what config.json counts"
    monkeypatch.setattr(module_tree, "proven_with", lambda *_: False)
    monkeypatch.setattr(module_tree, "_ask", Here)
    assert verify(folder).checks[-1].detail == "the class builds all 4"
    gone = [f"model.layers.{layer}.self_attn.{leaf}_proj" for layer in (0, 1) for leaf in "qv"]
    other = {"class": "LlamaForCausalLM", "version": "4.20.1", "missing": gone, "extra": [], "unclaimed": {}}
    monkeypatch.setattr(module_tree, "_answer", lambda _: other)
    found = verify(folder)
    assert not found.holds and "LlamaForCausalLM has no model.layers.0.self_attn.q_proj" in found.checks[-1].detail


def test_every_verb_sees_the_same_modules(asked: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    source, folder, _ = asked
    wanted = {record["module"] for record in json.loads((folder / "ailora.json").read_text())["modules"]}
    assert {target.module for target in inspect_checkpoint(source).plan.targets} == wanted
    document = analyze(source, output=tmp_path / "report").document
    assert {row["tensor"] for row in document["matrices"]} == {f"{module}.weight" for module in wanted}


def test_names_that_fit_nowhere_are_no_layers_to_leave_alone(tmp_path: Path) -> None:
    """Left alone without a word, the whole adapter would be missing."""
    named = {re.sub("([qkv])_proj", r"w\1", name): value for name, value in llama_tensors().items()}
    folder = write_checkpoint(tmp_path / "model", named, **CONFIG)
    with pytest.raises(TargetError, match=r"LlamaForCausalLM has no model\.layers\.0\.self_attn\.wq"):
        initialize(folder, 4, output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_names_by_hand_are_left_out_where_the_class_has_no_such_layer(tmp_path: Path) -> None:
    template = "model.layers.{layer}.self_attn.{leaf}_proj.weight"
    names = {f"{leaf}_tensor": template.replace("{leaf}", leaf) for leaf in "qv"}
    result = initialize(unknown_type(tmp_path / "model"), 4, output=tmp_path / "out", dry_run=True, **names)
    assert {carrier.targets[0].layer for carrier in result.operation.plan.carriers} == {0, 1}


# ---- starting anew, without a process


class Answered:
    """In place of `check_modules`: the class lacks some modules."""

    def __init__(self, *missing: str) -> None:
        self.missing, self.asked = missing, 0

    def __call__(self, checkpoint: object, plan: Plan, *_: object) -> verb.ModuleCheck:
        self.asked += 1
        missing = [target.module for target in plan.targets if target.module in self.missing]
        answer = {"class": "C", "version": "5", "missing": missing, "extra": [], "unclaimed": {}}
        return verb.ModuleCheck(plan, answer=answer)


def test_a_layer_asked_for_that_the_class_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "check_modules", Answered(*SURPLUS))
    with pytest.raises(OptionError, match=r"no layer 2 that the class builds: model\.layers\.2.* have no module"):
        initialize(unknown_type(tmp_path / "model"), 4, output=tmp_path / "out", layers="1-2")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_all_linear_leaves_alone_is_told_where_the_class_lacks_layers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(as_built, "check_modules", Answered(*SURPLUS))
    monkeypatch.setattr(as_built, "spelled_out", lambda *_: Roles(("q", "v"), {"lm_head": "lie outside the layers"}))
    found = inspect_checkpoint(unknown_type(tmp_path / "model"), roles=["all-linear"]).plan
    assert {target.layer for target in found.targets} == {0, 1}
    assert "all-linear leaves alone, because they lie outside the layers: lm_head" in found.notices


@pytest.mark.parametrize("after", [1, 5, 8])
def test_an_interrupted_run_goes_on_with_what_it_was_told(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first plan, in the second, and between the last matrix and the end; the bytes are the same."""
    for asking in (verb, built):
        monkeypatch.setattr(asking, "check_modules", Answered(*SURPLUS))
    source = unknown_type(tmp_path / "model")
    whole = initialize(source, 4, output=tmp_path / "whole").folder
    monkeypatch.setattr(verb.ModuleCheck, "look", lambda self: None)  # the answer comes last
    with pytest.raises(KeyboardInterrupt):
        initialize(source, 4, output=tmp_path / "out", progress=Interrupting(after))
    join_workers()
    resumed = initialize(source, 4, output=tmp_path / "out", resume=True).folder
    first, second = tree(whole), tree(resumed)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and name.endswith(".safetensors")] == []
    assert verify(resumed).holds
