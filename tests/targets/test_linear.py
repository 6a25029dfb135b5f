"""Roles beyond W^Q, W^K, W^V and W^O: what the class says, what is refused, what the reports make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kit.asked_here import Here
from kit.checkpoints import write_checkpoint
from kit.families import build
from safetensors.torch import load_file

from ailora_tools import analyze, initialize, inspect_checkpoint, residualize, verify
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import AiloraError, OptionError, TargetError
from ailora_tools.methods import find_method
from ailora_tools.targets import module_tree
from ailora_tools.targets.linear import spelled_out

EVERY = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(autouse=True, scope="module")
def _here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_tree, "_ask", Here)
        yield


def saved(name: str, folder: Path) -> Path:
    build(name).save_pretrained(folder / "model")
    return folder / "model"


def test_a_model_s_own_words_are_roles_as_well(tmp_path: Path) -> None:
    """The same matrices as by the roles of the table, under the names that were asked for."""
    model = saved("opt", tmp_path)
    own = inspect_checkpoint(model, roles=("fc1", "fc2")).plan
    table = inspect_checkpoint(model, roles=("up", "down")).plan
    assert [target.tensor for target in own.targets] == [target.tensor for target in table.targets]
    assert {target.role for target in own.targets} == {"fc1", "fc2"}
    made = initialize(model, 2, method="fc1=minor,fc2=principal", output=tmp_path / "out").manifest
    assert {(record.role, record.rule) for record in made.modules} == {("fc1", "minor"), ("fc2", "principal")}
    assert verify(tmp_path / "out").holds


def test_both_halves_of_a_fused_mlp_are_taken_apart(tmp_path: Path) -> None:
    model = saved("phi3, grouped", tmp_path)
    made = initialize(model, 2, method="gate=principal,up=minor", output=tmp_path / "out").manifest
    half = load_file(model / "model.safetensors")["model.layers.0.mlp.gate_up_proj.weight"].shape[0] // 2
    runs = {record.role: record.part.runs for record in made.modules if record.part}
    assert runs == {"gate": ((0, half),), "up": ((half, 2 * half),)}
    assert verify(tmp_path / "out").holds


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"roles": ("all-linear",)}, "says nothing about role all-linear"),
        ({"roles": ("q", "gate")}, "says nothing about role gate"),
        ({"method": "pissa", "roles": ("q", "fc1")}, "no W.fc1 in its layers"),
        ({"method": "q=principal,gat=minor"}, "no W.gat in its layers"),
        ({"method": "fc1=minor,all-linear=principal"}, "its roles are fc1, those asked for q, k, v, o, gate, up, down"),
    ],
)
def test_a_role_without_a_rule_or_a_matrix_is_refused(options: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(AiloraError, match=words):
        initialize(saved("llama", tmp_path), 2, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_ailora_with_a_rule_for_the_rest(tmp_path: Path) -> None:
    method = "q=principal,v=minor,all-linear=kaiming"
    made = initialize(saved("llama", tmp_path), 2, method=method, output=tmp_path / "out").manifest
    rules = {record.role: record.rule for record in made.modules}
    assert rules == {**dict.fromkeys(EVERY, "kaiming"), "q": "principal", "v": "minor"}
    assert made.settings["roles"] == list(EVERY) or made.settings["roles"] == EVERY
    assert verify(tmp_path / "out").holds
    with pytest.raises(OptionError):
        find_method(method, ("k",))


def test_what_peft_takes_for_experts_is_refused_by_init_alone(tmp_path: Path) -> None:
    model = saved("deepseek-v3, latent", tmp_path)
    with pytest.raises(OptionError, match=r"takes the names of .*gate_proj.* for those of experts"):
        initialize(model, 2, method="pissa", roles=("q", "gate"), output=tmp_path / "out")
    assert {target.role for target in inspect_checkpoint(model, roles=("gate",)).plan.targets} == {"gate"}
    looked, adapted = (spelled_out(open_checkpoint(model), ("all-linear",), major=major) for major in (0, 5))
    assert set(looked.roles) - set(adapted.roles) == {"gate", "up", "down"}
    assert any("names that PEFT keeps for experts" in text for text in adapted.notices)


def test_kinds_of_matrices_narrower_than_the_rank_are_left_alone_and_named(tmp_path: Path) -> None:
    model = saved("gemma3n text, shared keys and values", tmp_path)
    wide, narrow = (spelled_out(open_checkpoint(model), ("all-linear",), rank) for rank in (2, 6))
    gone = set(wide.roles) - set(narrow.roles)
    assert {"linear_left", "linear_right"} <= gone
    assert all(any(word in text for text in narrow.notices) for word in gone)


def test_without_a_class_to_ask_it_says_which_roles_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved("llama", tmp_path)
    monkeypatch.setattr(module_tree, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match="only the class can tell, and transformers is not installed") as caught:
        initialize(model, 2, method="pissa", roles=("all-linear",), output=tmp_path / "out")
    assert "gate, up, down" in str(caught.value.hint)
    made = initialize(model, 2, method="pissa", roles=EVERY, output=tmp_path / "out").manifest
    assert len(made.modules) == 14


def test_a_model_that_no_row_describes_is_told_by_its_names(tmp_path: Path) -> None:
    names = [f"attn.{leaf}" for leaf in ("wq", "wk", "wv", "wo")] + [f"feed_forward.w{number}" for number in (1, 2, 3)]
    tensors = {f"blocks.{at}.{name}.weight": torch.randn(8, 8) for at in (0, 1) for name in (*names, "extra.mix")}
    write_checkpoint(tmp_path, tensors, model_type="nothing", architectures=[])
    plan = inspect_checkpoint(tmp_path, roles=(*EVERY, "mix")).plan
    found = {(target.role, target.tensor.split(".", 2)[2]) for target in plan.targets}
    leaves = (*names[:4], "feed_forward.w1", "feed_forward.w3", "feed_forward.w2", "extra.mix")
    assert found == {(role, f"{leaf}.weight") for role, leaf in zip((*EVERY, "mix"), leaves, strict=True)}


def test_an_analysis_and_its_report_take_every_role(tmp_path: Path) -> None:
    done = analyze(saved("llama", tmp_path), roles=("all-linear",), rank=2, heads=True, suggest_ranks="3",
                   output=tmp_path / "report")  # fmt: skip
    rows = done.document["matrices"]
    assert {row["role"] for row in rows} == set(EVERY) == set(done.document["settings"]["roles"])
    assert all(bool(row["heads"]) is (row["role"] in "qkvo") for row in rows)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "W<sup>gate</sup>" in page or "W^gate" in page
    made = initialize(tmp_path / "model", ranks=tmp_path / "report" / "ranks.json", method="pissa", roles=EVERY,
                      output=tmp_path / "out").manifest  # fmt: skip
    ranks = json.loads((tmp_path / "report" / "ranks.json").read_text())["rank_pattern"]
    assert {record.module: record.rank for record in made.modules} == ranks


def test_a_report_has_a_mark_for_any_role(tmp_path: Path) -> None:
    done = analyze(saved("deepseek-v3, latent", tmp_path), roles=("all-linear",), rank=2, output=tmp_path / "report")
    page, own = done.report.read_text(), {"q_a_proj", "kv_a_proj_with_mqa"}
    assert own < {row["role"] for row in done.document["matrices"]}
    assert all(f"spectra-{role}" in page for role in own)


def test_residualize_takes_what_init_took(tmp_path: Path) -> None:
    made = initialize(saved("llama", tmp_path), 2, method="pissa", roles=EVERY, output=tmp_path / "out")
    model = build("llama")
    assert residualize(model, made.adapter).exact
    stored = load_file(made.folder / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[record.tensor], stored[record.tensor]) for record in made.manifest.modules)
