"""Fused, gated and latent projections: which lines are W^Q and W^V is proven on running models, by what changes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import FUSED, build, output
from kit.interruption import Interrupting, join_workers
from kit.real_models import ROOT
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ailora_tools import analyze, initialize, mask_fused_gradients, verify
from ailora_tools.analysis.tuned import load_projection
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import CheckpointError, TargetError
from ailora_tools.matrices.gather import gather, scatter
from ailora_tools.matrices.layouts import GROUP_UNPROVEN, PER_HEAD, Part
from ailora_tools.targets.architectures import ARCHITECTURES
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.projections import Plan, Target
from ailora_tools.targets.selection import Selection

RANK = 3
LATENT = ("deepseek-v3, latent", "deepseek-v2, latent, plain queries")
UNCACHED = ("modernbert", "deberta", "openai-gpt", *LATENT)  # what a latent cache holds is neither keys nor values
CACHED = [name for name in FUSED if name not in UNCACHED]
WITH_KEYS = [name for name in CACHED if "gated" not in name]  # keys in the same tensor


def planned(model: nn.Module, folder: Path, roles: str = "qv") -> Plan:
    model.save_pretrained(folder)
    return make_plan(open_checkpoint(folder), Selection(tuple(roles)))


@contextmanager
def silenced(model: nn.Module, *targets: Target) -> Iterator[None]:
    """Meanwhile the lines of the targets, and their entries in the bias, are zero."""
    saved = [(value, value.detach().clone()) for value in model.parameters()]
    with torch.no_grad():
        for target in targets:
            module = model.get_submodule(target.module)
            scatter(module.weight, target.part or Part(((0, target.shape[0]),)), torch.zeros(target.shape))
            if getattr(module, "bias", None) is not None:
                for start, stop in target.part.runs if target.part else ((0, target.shape[0]),):
                    module.bias[start:stop] = 0
        try:
            yield
        finally:
            for value, old in saved:
                value.copy_(old)


def cache_of(model: nn.Module, name: str, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values that one layer puts into the cache."""
    with torch.no_grad():
        cache = model(**FUSED[name].inputs(), use_cache=True).past_key_values
    entry = cache.layers[layer]
    return entry.keys.clone(), entry.values.clone()


@pytest.mark.parametrize("name", FUSED)
def test_what_is_read_is_that_part_of_the_module(name: str, tmp_path: Path) -> None:
    model = build(name)
    plan = planned(model, tmp_path)
    files = open_checkpoint(tmp_path).files
    assert {target.role for target in plan.targets} == {"q", "v"}
    for target in plan.targets:
        W = load_projection(files, target)
        assert W.shape == target.shape
        assert torch.equal(W, gather(model.get_submodule(target.module).weight.detach(), target.part))


@pytest.mark.parametrize("name", CACHED)
def test_exactly_the_values_or_the_queries_change(name: str, tmp_path: Path) -> None:
    """In the cache of the first layer: without W^V all values are zero and no key changes; without W^Q both stay."""
    model = build(name)
    plan = planned(model, tmp_path)
    layer = min(target.layer for target in plan.targets)
    keys, values = cache_of(model, name, layer)
    before = output(model, FUSED[name].inputs())
    q, v = (next(t for t in plan.targets if (t.role, t.layer) == (role, layer)) for role in "qv")
    with silenced(model, v):
        still, none = cache_of(model, name, layer)
        assert torch.equal(still, keys) and values.any() and not none.any()
    with silenced(model, q):
        same_keys, same_values = cache_of(model, name, layer)
        assert torch.equal(same_keys, keys) and torch.equal(same_values, values)
        assert not torch.allclose(output(model, FUSED[name].inputs()), before, rtol=1e-4)
    for start, stop in q.part.runs if q.part else ():
        with silenced(model, Target(**{**q.__dict__, "part": Part(((start, stop),), q.part.transposed),
                                       "shape": (stop - start, q.shape[1])})):  # fmt: skip
            changed = output(model, FUSED[name].inputs())
        assert not torch.allclose(changed, before, rtol=1e-6), "every run of rows is used"


@pytest.mark.parametrize("name", WITH_KEYS)
def test_what_is_left_are_the_keys(name: str, tmp_path: Path) -> None:
    model = build(name)
    plan = planned(model, tmp_path, "qkv")
    keys, values = cache_of(model, name, 0)
    k = next(target for target in plan.targets if (target.role, target.layer) == ("k", 0))
    with silenced(model, k):
        none, same = cache_of(model, name, 0)
        assert torch.equal(same, values) and keys.any() and not none.any()
    of_layer = [target for target in plan.targets if target.layer == 0]
    lines = sorted(line for target in of_layer for run in target.part.runs for line in range(*run))  # type: ignore[union-attr]
    assert lines == list(range(of_layer[0].sides[0])), "W^Q, W^K and W^V are all of it, once"


@pytest.mark.parametrize("name", UNCACHED)
def test_over_one_key_only_the_values_matter(name: str, tmp_path: Path) -> None:
    """The softmax over one key is 1 whatever W^Q and W^K are; over several, W^Q matters too."""
    model = build(name)
    plan = planned(model, tmp_path, "qkv")
    one_key = FUSED[name].one_key
    assert one_key is not None
    for target in plan.targets:
        alone, together = output(model, one_key()), output(model, FUSED[name].inputs())
        with silenced(model, target):
            assert torch.allclose(output(model, one_key()), alone, rtol=1e-5) == (target.role != "v")
            assert not torch.allclose(output(model, FUSED[name].inputs()), together, rtol=1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_base_and_adapter_compute_what_the_original_does(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "source")
    inputs = FUSED[name].inputs()
    original = output(model, inputs)
    result = initialize(tmp_path / "source", RANK, output=tmp_path / "out")
    base = type(model).from_pretrained(tmp_path / "out").eval()
    assert float((output(base, inputs) - original).norm() / original.norm()) > 1e-4
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing adapter keys|fan_in_fan_out).*")
        adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "ailora_init").eval()
    assert float((output(adapted, inputs) - original).norm() / original.norm()) <= 1e-5
    assert verify(tmp_path / "out").holds
    assert len(result.manifest.modules) == len(result.operation.plan.targets)  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{"rslora": True}, {"alpha": 7}, {"method": "pissa"}, {"roles": ("v",)},
                                     {"roles": ("q", "k", "v", "o"), "method": "pissa"},
                                     {"adapter_dtype": "bfloat16"}])  # fmt: skip
@pytest.mark.parametrize("name", ["gpt2", "falcon, groups", "deepseek-v3, latent"])
def test_every_option_keeps_the_function(name: str, options: dict[str, object], tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "source")
    inputs = FUSED[name].inputs()
    original = output(model, inputs)
    initialize(tmp_path / "source", RANK, output=tmp_path / "out", **options)  # type: ignore[arg-type]
    base = type(model).from_pretrained(tmp_path / "out").eval()
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "ailora_init").eval()
    assert float((output(adapted, inputs) - original).norm() / original.norm()) <= 1e-5
    assert verify(tmp_path / "out").holds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "phi3, grouped"])
def test_the_keys_keep_their_bytes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(name).to(dtype)
    plan = planned(model, tmp_path / "source", "qkv")
    initialize(tmp_path / "source", RANK, output=tmp_path / "out")
    old, new = (load_file(tmp_path / folder / "model.safetensors") for folder in ("source", "out"))
    touched = {target.tensor for target in plan.targets}
    for tensor in old:
        if tensor not in touched:
            assert torch.equal(old[tensor], new[tensor])
    for target in plan.targets:
        before, after = gather(old[target.tensor], target.part), gather(new[target.tensor], target.part)
        assert torch.equal(before, after) == (target.role == "k")


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox"])
def test_a_float32_base_of_a_bfloat16_model_is_exact(name: str, tmp_path: Path) -> None:
    model = build(name).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    inputs = FUSED[name].inputs()
    original = output(model.float(), inputs)
    initialize(tmp_path / "source", RANK, base_dtype="float32", output=tmp_path / "out")
    base = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "ailora_init").eval()
    assert float((output(adapted, inputs) - original).norm() / original.norm()) <= 1e-5
    assert verify(tmp_path / "out").holds


@pytest.mark.parametrize("role", ["k", "q"])
def test_verify_sees_a_changed_line(role: str, tmp_path: Path) -> None:
    model = build("gpt-neox")
    plan = planned(model, tmp_path / "source", "qkv")
    initialize(tmp_path / "source", RANK, output=tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    target = next(target for target in plan.targets if target.role == role)
    raw = bytearray(path.read_bytes())
    line = target.part.runs[0][0]  # type: ignore[union-attr]
    raw[target.stored.start + line * target.stored.shape[1] * 4] ^= 1
    path.write_bytes(bytes(raw))
    failed = {check.name for check in verify(tmp_path / "out").checks if not check.holds}
    assert failed >= {"files", "untouched bytes" if role == "k" else "base"}


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    build("gpt-neox").save_pretrained(tmp_path / "source")
    whole = tree(initialize(tmp_path / "source", RANK, output=tmp_path / "out").folder)
    with pytest.raises(KeyboardInterrupt):
        initialize(tmp_path / "source", RANK, output=tmp_path / "out", overwrite=True, progress=Interrupting(1))
    join_workers()
    initialize(tmp_path / "source", RANK, output=tmp_path / "out", overwrite=True, resume=True)
    assert tree(tmp_path / "out") == whole


def test_analysis_looks_at_the_gathered_matrices(tmp_path: Path) -> None:
    """The planted change is found in W^V of one layer and nowhere else, by checkpoint and by adapter."""
    model = build("gpt-neox")
    plan = planned(model, tmp_path / "base")
    target = next(target for target in plan.targets if target.label == "v 1")
    with torch.no_grad():
        weight = model.get_submodule(target.module).weight
        W = gather(weight, target.part)
        scatter(weight, target.part, W + 0.1 * torch.outer(torch.ones(len(W)), torch.ones(W.shape[1])))
    model.save_pretrained(tmp_path / "tuned")
    document = analyze(tmp_path / "base", against=[tmp_path / "tuned"], output=tmp_path / "report", rank=2).document
    changed = [row["label"] for row in document["matrices"] if row["changes"][0]["metrics"]["relative_change"] > 0]
    assert changed == ["v 1"]
    assert all(row["shape"] == [36, 36] for row in document["matrices"])
    adapter = initialize(tmp_path / "base", RANK, output=tmp_path / "out").adapter
    document = analyze(tmp_path / "base", against=[adapter], output=tmp_path / "again", rank=2).document
    assert all(len([s for s in row["changes"][0]["delta_singular_values"] if s > 1e-6]) == RANK
               for row in document["matrices"])  # fmt: skip


# ---- training


def trained(
    name: str, folder: Path, masked: bool, optimiser: type
) -> tuple[dict[str, Tensor], dict[str, Tensor], Plan]:
    """Three steps; the adapter's tensors before and after."""
    base = type(build(name)).from_pretrained(folder)
    model = PeftModel.from_pretrained(base, folder / "ailora_init", is_trainable=True)
    handles = mask_fused_gradients(model, folder / "ailora_init") if masked else []
    before = {key: value.detach().clone() for key, value in model.named_parameters() if "lora_" in key}
    steps = optimiser([value for value in model.parameters() if value.requires_grad], lr=1e-2, weight_decay=0.1)
    inputs = FUSED[name].inputs()
    for _ in range(3):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        steps.step()
        steps.zero_grad()
    for handle in handles:
        handle.remove()
    return before, dict(model.named_parameters()), make_plan(open_checkpoint(folder), Selection(("q", "k", "v")))


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("name", ["gpt-neox", "gpt2", "falcon, groups"])
def test_the_mask_keeps_training_out_of_the_keys(name: str, optimiser: type, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path / "source")
    initialize(tmp_path / "source", RANK, output=tmp_path / "out")
    for masked in (True, False):
        before, after, plan = trained(name, tmp_path / "out", masked, optimiser)
        for target in plan.targets:
            key = f"base_model.model.{target.module}.lora_{{}}.default.weight"
            A, A0, B, B0 = (part[key.format(side)].detach() for side in "AB" for part in (after, before))
            delta = gather(B @ A - B0 @ A0, Part(target.part.runs))  # type: ignore[union-attr]
            assert bool(delta.any()) == (target.role != "k" or not masked)
            if masked and target.role == "q":
                own = gather(B, Part(target.part.runs))  # type: ignore[union-attr]
                assert not own[:, RANK:].any(), "A_v does not reach W^Q"
                assert own[:, :RANK].any()


def test_a_mask_needs_its_model_and_its_manifest(tmp_path: Path) -> None:
    build("gpt-neox").save_pretrained(tmp_path / "source")
    folder = initialize(tmp_path / "source", RANK, output=tmp_path / "out").adapter
    with pytest.raises(TargetError, match="the model has no LoRA on gpt_neox"):
        mask_fused_gradients(build("gpt-neox"), folder)
    with pytest.raises(CheckpointError, match=r"ailora\.json"):
        mask_fused_gradients(build("gpt-neox"), tmp_path / "source" / "ailora_init")


def test_the_example_shows_what_the_mask_changes() -> None:
    script = ROOT / "examples" / "fused_training.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    without, masked = done.stdout.splitlines()
    assert "W^K 0.00e+00" in masked and "W^K 0.00e+00" not in without


def test_suggested_ranks_give_both_projections_of_a_module_the_same(tmp_path: Path) -> None:
    build("gpt-neox").save_pretrained(tmp_path / "model")
    found = analyze(tmp_path / "model", output=tmp_path / "report", rank=2, suggest_ranks=4).document["ranks"]
    assert len(found["rank_pattern"]) == 2 and found["parameters"] <= found["budget"]
    spent = sum(2 * rank * (36 + 36) for rank in found["rank_pattern"].values())
    assert spent == found["parameters"]
    result = initialize(tmp_path / "model", ranks=tmp_path / "report" / "ranks.json", output=tmp_path / "out")
    assert verify(result.folder).holds
    assert {record.rank for record in result.manifest.modules} == set(found["rank_pattern"].values())  # type: ignore[union-attr]


# ---- the layouts themselves


def test_the_terminal_and_json_tell_the_lines(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path)
    command = [sys.executable, "-m", "ailora_tools", "inspect", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "36 × 36 F32, part of 36 × 108" in shown
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert [(target["lines"], target["transposed"]) for target in found["targets"][:2]] == [
        ([[0, 36]], True), ([[72, 108]], True)
    ]  # fmt: skip


def test_a_config_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    build("gpt-neox").save_pretrained(tmp_path)
    for heads in (-6, "many", float("inf"), 0):
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": heads}))
        with pytest.raises(TargetError, match=r"config\.json"):
            make_plan(open_checkpoint(tmp_path))
    for change, message in (({"num_attention_heads": 7}, "108 lines, but config.json makes it 7 times"),
                            ({"num_attention_heads": None}, "config.json does not tell its layout")):  # fmt: skip
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(TargetError, match=message):
            make_plan(open_checkpoint(tmp_path))


def test_runs_that_touch_are_one() -> None:
    assert PER_HEAD.part({"n_head": 2}, "q", 12, 0, "t").runs == ((0, 2), (6, 8))
    assert GROUP_UNPROVEN.part({"n_head": 4, "num_kv_heads": 1}, "q", 12, 0, "t").runs == ((0, 8),)


def test_scatter_undoes_gather() -> None:
    stored = torch.randn(12, 5)
    for part in (Part(((0, 2), (6, 8))), Part(((1, 3),), transposed=True), None):
        W = gather(stored, part).clone()
        blank = scatter(torch.zeros_like(stored), part, W)
        assert torch.equal(gather(blank, part), W)
        assert torch.equal(scatter(stored.clone(), part, W), stored)


def test_layouts_that_no_test_can_run_say_so(tmp_path: Path) -> None:
    kept = {name: value for name, value in llama_tensors().items() if "self_attn" not in name}
    wqkv = {f"model.layers.{layer}.attention.wqkv.weight": torch.randn(96, 48) for layer in (0, 1)}
    folder = write_checkpoint(
        tmp_path, {**kept, **wqkv}, model_type="internlm2", num_attention_heads=4, num_key_value_heads=2,
        architectures=["InternLM2ForCausalLM"],
    )  # fmt: skip
    plan = make_plan(open_checkpoint(folder))
    assert any("not proven by a test" in text for text in plan.notices)
    assert next(t for t in plan.targets if t.role == "q").part == Part(((0, 24), (48, 72)))
    unproven = {name for row in ARCHITECTURES for layout in row.layouts.values() if not layout.proven
                for name in row.model_types}  # fmt: skip
    assert unproven == {"internlm2", "baichuan", "qwen", "chatglm", "openelm", "jais"}


def test_dbrx_names_its_heads_in_a_config_of_their_own(tmp_path: Path) -> None:
    names = [f"transformer.blocks.{layer}.norm_attn_norm.attn.Wqkv.weight" for layer in (0, 1)]
    folder = write_checkpoint(
        tmp_path, {name: torch.randn(64, 48) for name in names}, model_type="dbrx", n_heads=4,
        attn_config={"kv_n_heads": 2}, architectures=["DbrxForCausalLM"],
    )  # fmt: skip
    parts = [target.part for target in make_plan(open_checkpoint(folder)).targets]
    assert parts == 2 * [Part(((0, 32),)), Part(((48, 64),))]
