"""After training: convert, merge and residualize, held against PEFT on real classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import ALL, load_with_offset, near, original, prepare, train
from kit.checkpoints import tree
from kit.families import build, output
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ailora_tools import convert, initialize, merge, residualize
from ailora_tools.adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ailora_tools.errors import CheckpointError, OptionError, OutputError, TargetError
from ailora_tools.linalg.lowrank import distance, factorise
from ailora_tools.output.names import RESULT

CASES = ["llama", "qwen2 with biases", "bert with a head", "t5, heads narrower than the model", "gpt2", "gpt-neox",
         "falcon, groups", "deepseek-v3, latent"]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_converted_adapter_on_the_original_is_the_trained_model(name: str, tmp_path: Path) -> None:
    trained, expected = prepare(name, tmp_path)
    before = {place: tree(tmp_path / place) for place in ("model", "init", "trained")}
    assert not near(output(original(name, tmp_path), ALL[name].inputs()), expected, 1e-3), "training changed something"
    done = convert(trained, tmp_path / "init", tmp_path / "plain")
    plain = PeftModel.from_pretrained(original(name, tmp_path), done.folder).eval()
    assert near(output(plain, ALL[name].inputs()), expected, 1e-5)
    assert all(module.error < 1e-6 for module in done.modules)
    assert before == {place: tree(tmp_path / place) for place in before}, "no input is changed"


@pytest.mark.parametrize("name", CASES)
def test_merged_from_either_side_is_the_trained_model(name: str, tmp_path: Path) -> None:
    trained, expected = prepare(name, tmp_path)
    convert(trained, tmp_path / "init", tmp_path / "plain")
    for base, adapter in (("init", "trained"), ("model", "plain")):
        done = merge(tmp_path / base, tmp_path / adapter, tmp_path / f"merged-{base}")
        merged = type(build(name)).from_pretrained(done.folder).eval()
        assert near(output(merged, ALL[name].inputs()), expected, 1e-5)
        assert {module.change > 0 for module in done.modules} == {True}
    ours = load_file(tmp_path / "merged-init" / "model.safetensors")
    untouched = load_file(tmp_path / "model" / "model.safetensors")
    touched = {module.tensor for module in done.modules}
    assert all(torch.equal(ours[key], untouched[key]) for key in untouched if key not in touched)
    again = initialize(tmp_path / "merged-init", 2, output=tmp_path / "again")
    assert again.manifest is not None, "a second init on the merged model works"


def test_merge_is_peft_s_merge(tmp_path: Path) -> None:
    trained, _ = prepare("llama", tmp_path)
    done = merge(tmp_path / "init", trained, tmp_path / "merged")
    base = type(build("llama")).from_pretrained(tmp_path / "init")
    theirs = PeftModel.from_pretrained(base, trained).merge_and_unload().state_dict()
    for key, value in load_file(done.folder / "model.safetensors").items():
        assert torch.allclose(value, theirs[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{"rslora": True}, {"alpha": 5}, {"method": "pissa"}, {"method": "lora"},
                                     {"no_base": True}])  # fmt: skip
def test_convert_under_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    if not options.get("no_base") and options.get("method") != "lora":
        trained, expected = prepare("llama", tmp_path, **options)
    else:
        build("llama").save_pretrained(tmp_path / "model")
        made = initialize(tmp_path / "model", 2, output=tmp_path / "init", **options)
        model: nn.Module = original("llama", tmp_path)
        if options.get("no_base"):
            loaded = load_with_offset(model, made.folder)
        else:
            loaded = PeftModel.from_pretrained(model, made.adapter, is_trainable=True)
        train(loaded, "llama")
        expected = output(loaded, ALL["llama"].inputs())
        trained = tmp_path / "trained"
        loaded.save_pretrained(trained, selected_adapters=["default"])
    done = convert(f"{trained}/", f"{tmp_path / 'init'}/", tmp_path / "plain")
    plain = PeftModel.from_pretrained(original("llama", tmp_path), done.folder).eval()
    assert near(output(plain, ALL["llama"].inputs()), expected)
    config = json.loads((done.folder / ADAPTER_CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] and config["use_rslora"] is False
    assert config["base_model_name_or_path"] == str(tmp_path / "model")
    assert config["r"] == (2 if options.get("method") == "lora" else 4)


def test_ranks_of_their_own_and_modules_to_save(tmp_path: Path) -> None:
    build("bert with a head").save_pretrained(tmp_path / "model")
    first = initialize(tmp_path / "model", 2, output=tmp_path / "probe", dry_run=True).operation.plan.targets[0].module
    ranks = {
        "format": "ailora-tools ranks",
        "version": 1,
        "rank": 2,
        "alpha": 2,
        "rank_pattern": {first: 5},
        "alpha_pattern": {first: 3},
    }
    (tmp_path / "ranks.json").write_text(json.dumps(ranks))
    made = initialize(tmp_path / "model", ranks=tmp_path / "ranks.json", output=tmp_path / "init")
    config = json.loads((made.adapter / ADAPTER_CONFIG).read_text())
    head = "cls.predictions.transform.dense"
    trained_config = {**config, "modules_to_save": [head]}
    shutil.copytree(made.adapter, tmp_path / "trained")
    (tmp_path / "trained" / ADAPTER_CONFIG).write_text(json.dumps(trained_config))
    factors = load_file(tmp_path / "trained" / ADAPTER_WEIGHTS)
    weight = original("bert with a head", tmp_path).get_submodule(head).weight.detach() * 1.5
    grown = {key: value * 1.1 for key, value in factors.items()} | {f"base_model.model.{head}.weight": weight}
    save_file(grown, tmp_path / "trained" / ADAPTER_WEIGHTS)
    done = convert(tmp_path / "trained", tmp_path / "init", tmp_path / "plain", keep_ranks=True)
    assert done.kept == (f"{head}.weight",)
    assert {module.rank for module in done.modules} == {4, 10}
    written = load_file(done.folder / ADAPTER_WEIGHTS)
    assert torch.equal(written[f"base_model.model.{head}.weight"], weight)
    plain = json.loads((done.folder / ADAPTER_CONFIG).read_text())
    assert plain["rank_pattern"] == plain["alpha_pattern"] == {first: 10}
    assert plain["modules_to_save"] == trained_config["modules_to_save"]
    merged = merge(tmp_path / "init", tmp_path / "trained", tmp_path / "merged")
    assert any(module.change == pytest.approx(0.5, rel=1e-4) for module in merged.modules)


def test_an_untrained_adapter_is_no_change(tmp_path: Path) -> None:
    """What is left of two equal products is rounding: it is zero in the result, and told."""
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, output=tmp_path / "init")
    done = convert(made.adapter, made.folder, tmp_path / "plain")
    assert not any(module.changed or module.error for module in done.modules)
    assert not any(value.any() for key, value in load_file(done.folder / ADAPTER_WEIGHTS).items() if "lora_" in key)
    with pytest.raises(TargetError, match=r"is incomplete.* all of A"):
        zeros = {key: value * 0 for key, value in load_file(made.adapter / ADAPTER_WEIGHTS).items()}
        shutil.copytree(made.adapter, tmp_path / "zero")
        save_file(zeros, tmp_path / "zero" / ADAPTER_WEIGHTS)
        convert(tmp_path / "zero", made.folder, tmp_path / "never")


def test_a_smaller_rank_is_the_best_one_and_its_error_is_told(tmp_path: Path) -> None:
    trained, _ = prepare("llama", tmp_path)
    whole = convert(trained, tmp_path / "init", tmp_path / "whole")
    small = convert(trained, tmp_path / "init", tmp_path / "small", rank=1)
    ours, best = (load_file(done.folder / ADAPTER_WEIGHTS) for done in (small, whole))
    for module in small.modules:
        A, B, A1, B1 = (
            factors[f"base_model.model.{module.module}.lora_{side}.weight"].double()
            for factors in (best, ours)
            for side in "AB"
        )
        S = torch.linalg.svdvals(B @ A)
        assert module.truncated == pytest.approx(float(S[1:].norm() / S.norm()), rel=1e-4)
        assert float((B @ A - B1 @ A1).norm() / S.norm()) == pytest.approx(module.error, rel=1e-4)
    with pytest.raises(OptionError, match="rank 999 is above"):
        convert(trained, tmp_path / "init", tmp_path / "large", rank=999)
    assert not (tmp_path / "large").exists()


def test_16_bits_keep_a_change_that_plain_stacking_loses() -> None:
    """Two nearly equal products are large against their difference: in bf16 their sum is mostly rounding."""
    torch.manual_seed(0)
    A0, B0 = torch.randn(8, 256), torch.randn(256, 8)
    A, B = A0 + 1e-2 * torch.randn(8, 256), B0 + 1e-2 * torch.randn(256, 8)
    stacked_A, stacked_B = torch.cat([A, A0]), torch.cat([B, -B0], 1)
    change = stacked_B.double() @ stacked_A.double()
    ours = [side.bfloat16() for side in factorise(stacked_B, stacked_A).balanced(16)]
    theirs = (stacked_A.bfloat16(), stacked_B.bfloat16())
    error, stacked = (float((change - b.double() @ a.double()).norm() / change.norm()) for a, b in (ours, theirs))
    assert error < 5e-3 < 5 * error < stacked
    assert distance(stacked_B, stacked_A, ours[1], ours[0]) == pytest.approx(error, rel=1e-6)


def test_dora_is_refused_by_convert_and_taken_by_merge(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, output=tmp_path / "init")
    base = type(build("llama")).from_pretrained(tmp_path / "init").eval()
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], use_dora=True))
    for key, value in model.named_parameters():
        if "lora_" in key:
            value.data = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).abs() * 0.1
    expected = output(model.eval(), ALL["llama"].inputs())
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(TargetError, match="DoRA adapter cannot become a plain LoRA"):
        convert(tmp_path / "trained", made.folder, tmp_path / "plain")
    done = merge(tmp_path / "init", tmp_path / "trained", tmp_path / "merged")
    merged = type(build("llama")).from_pretrained(done.folder).eval()
    assert near(output(merged, ALL["llama"].inputs()), expected)


def test_strangers_are_told_apart(tmp_path: Path) -> None:
    trained, _ = prepare("llama", tmp_path)
    out = tmp_path / "out"
    factors = load_file(trained / ADAPTER_WEIGHTS)
    (tmp_path / "odd").mkdir()
    shutil.copy(trained / ADAPTER_CONFIG, tmp_path / "odd" / ADAPTER_CONFIG)

    def write(changed: dict[str, Tensor]) -> Path:
        save_file(changed, tmp_path / "odd" / ADAPTER_WEIGHTS)
        return tmp_path / "odd"

    torch.manual_seed(3)
    random = {key: torch.randn_like(value) for key, value in factors.items()}
    with pytest.raises(TargetError, match="not like those at the start"):
        convert(write(random), tmp_path / "init", out)
    with pytest.raises(TargetError, match="it lacks"):
        convert(write(dict(list(factors.items())[2:])), tmp_path / "init", out)
    wide = {key: value.repeat(2, 1) if "lora_A" in key else value.repeat(1, 2) for key, value in factors.items()}
    with pytest.raises(TargetError, match=r"has rank 4, adapter_config.json says 2"):
        convert(write(wide), tmp_path / "init", out)
    broken = {key: value * float("nan") for key, value in factors.items()}
    with pytest.raises(Exception, match="NaN"):
        convert(write(broken), tmp_path / "init", out)
    with pytest.raises(CheckpointError, match=r"expected an adapter \(adapter_config.json\)"):
        convert(tmp_path / "model", tmp_path / "init", out)
    with pytest.raises(CheckpointError):
        convert(trained, tmp_path / "model", out)
    assert not out.exists() and not (tmp_path / "out.partial").exists()
    for inside in (trained / "out", tmp_path / "init" / "out"):
        with pytest.raises(OutputError, match="inside the source"):
            convert(trained, tmp_path / "init", inside)
    convert(trained, tmp_path / "init", out)
    with pytest.raises(OutputError, match="already exists"):
        convert(trained, tmp_path / "init", out)
    assert convert(trained, tmp_path / "init", out, overwrite=True).folder == out


def test_merging_on_the_wrong_base_is_refused(tmp_path: Path) -> None:
    trained, _ = prepare("llama", tmp_path)
    convert(trained, tmp_path / "init", tmp_path / "plain")
    with pytest.raises(TargetError, match="would count twice"):
        merge(tmp_path / "model", trained, tmp_path / "merged")
    with pytest.raises(TargetError, match=r"is for the original .* lacks what `init` moved"):
        merge(tmp_path / "init", tmp_path / "plain", tmp_path / "merged")
    build("bert with a head").save_pretrained(tmp_path / "other")
    with pytest.raises(TargetError, match="is not in the base"):
        merge(tmp_path / "other", tmp_path / "plain", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_trainer_s_checkpoint_folder_is_found(tmp_path: Path) -> None:
    trained, _ = prepare("llama", tmp_path)
    (tmp_path / "run").mkdir()
    shutil.move(trained, tmp_path / "run" / "checkpoint-3")
    assert convert(tmp_path / "run", tmp_path / "init" / "ailora_init", tmp_path / "plain").modules
    shutil.copytree(tmp_path / "run" / "checkpoint-3", tmp_path / "run" / "checkpoint-6")
    with pytest.raises(CheckpointError, match="there are several below it"):
        convert(tmp_path / "run", tmp_path / "init", tmp_path / "plain-2")


def test_merge_keeps_shards_and_can_widen(tmp_path: Path) -> None:
    model = build("llama").bfloat16()
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    initialize(tmp_path / "model", 2, output=tmp_path / "init")
    convert(tmp_path / "init" / "ailora_init", tmp_path / "init", tmp_path / "plain")
    kept = merge(tmp_path / "init", tmp_path / "init" / "ailora_init", tmp_path / "kept")
    wide = merge(tmp_path / "init", tmp_path / "init" / "ailora_init", tmp_path / "wide", base_dtype="float32")
    assert (kept.dtypes, wide.dtypes) == (("BF16",), ("F32",))
    names = {path.name for path in (tmp_path / "model").glob("*.safetensors")}
    assert len(names) > 2 and names == {path.name for path in kept.folder.glob("*.safetensors")}
    index = json.loads((wide.folder / "model.safetensors.index.json").read_text())
    held = {key: value for name in names for key, value in load_file(wide.folder / name).items()}
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in held.values())
    for key, value in model.state_dict().items():
        if key in held:
            assert (held[key].float() - value.float()).abs().max() <= 2e-2 * value.float().abs().max()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "bert with a head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residualize_makes_the_very_bits_of_the_residual(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    build(name).to(dtype).save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, output=tmp_path / "init")
    kind = type(build(name))
    model = kind.from_pretrained(tmp_path / "model", dtype=dtype).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    done = residualize(model, made.adapter)
    residual = kind.from_pretrained(tmp_path / "init", dtype=dtype).state_dict()
    assert all(torch.equal(value, residual[key]) for key, value in model.state_dict().items())
    assert done.exact is True
    with pytest.raises(TargetError, match="residualised already"):
        residualize(model, made.adapter)
    done.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        model.get_submodule(made.manifest.modules[0].module).weight.mul_(1.5)  # type: ignore[union-attr]
    with pytest.raises(TargetError, match="of another model, or was changed"):
        residualize(model, made.adapter)


def test_residualize_in_another_dtype_and_without_a_base(tmp_path: Path) -> None:
    build("llama").bfloat16().save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "init")
    model = type(build("llama")).from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    expected = output(model, ALL["llama"].inputs())
    assert residualize(model, made.adapter).exact is None
    loaded = PeftModel.from_pretrained(model, made.adapter).eval()
    assert near(output(loaded, ALL["llama"].inputs()), expected)
    with pytest.raises(TargetError, match="is missing"):
        residualize(build("gpt2"), made.adapter)


def test_only_what_this_tool_wrote_is_ever_replaced(tmp_path: Path) -> None:
    """--overwrite on another model or adapter must not delete it."""
    trained, _ = prepare("llama", tmp_path)
    build("llama").save_pretrained(tmp_path / "precious")
    shutil.copytree(trained, tmp_path / "other")
    before = [tree(tmp_path / name) for name in ("precious", "other")]
    with pytest.raises(OutputError, match="was not written by ailora-tools"):
        merge(tmp_path / "init", trained, tmp_path / "precious", overwrite=True)
    with pytest.raises(OutputError, match="was not written by ailora-tools"):
        convert(trained, tmp_path / "init", tmp_path / "other", overwrite=True)
    assert [tree(tmp_path / name) for name in ("precious", "other")] == before
    done = merge(tmp_path / "init", trained, tmp_path / "merged")
    record = json.loads((done.folder / RESULT).read_text())
    assert record["verb"] == "merge" and len(record["modules"]) == len(done.modules)
    assert merge(tmp_path / "init", trained, tmp_path / "merged", overwrite=True).modules == done.modules
    again = initialize(done.folder, 2, output=tmp_path / "again")
    assert not (again.folder / RESULT).exists(), "the record is not of the new folder"


def test_a_failure_leaves_nothing_and_the_way_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, _ = prepare("llama", tmp_path)
    out = tmp_path / "out"
    for failure in (KeyboardInterrupt, OSError(28, "No space left on device")):
        with monkeypatch.context() as patch:
            patch.setattr("ailora_tools.verbs.merge.copy_file", raising(failure))
            with pytest.raises((KeyboardInterrupt, OutputError)):
                merge(tmp_path / "init", trained, out)
        assert not out.exists() and not (tmp_path / "out.partial").exists()
    assert merge(tmp_path / "init", trained, out).folder == out


def raising(failure: Any) -> Any:
    def fail(*arguments: object) -> None:
        raise failure

    return fail


def test_adapters_that_compute_something_else_are_refused(tmp_path: Path) -> None:
    trained, _ = prepare("llama", tmp_path)
    config, factors = json.loads((trained / ADAPTER_CONFIG).read_text()), load_file(trained / ADAPTER_WEIGHTS)
    for setting, told in (("use_dora", "no lora_magnitude_vector"), ("use_qalora", "this A is whole")):
        (trained / ADAPTER_CONFIG).write_text(json.dumps({**config, setting: True}))
        with pytest.raises(TargetError, match=told):
            merge(tmp_path / "init", trained, tmp_path / "out")
    (trained / ADAPTER_CONFIG).write_text(json.dumps(config))
    key = next(key for key in factors if key.endswith("lora_B.weight"))
    save_file({**factors, key.replace(".weight", ".bias"): torch.ones(len(factors[key]))}, trained / ADAPTER_WEIGHTS)
    for verb in (merge, convert):
        with pytest.raises(TargetError, match=r"has lora_B.bias, but lora_bias is not set"):
            arguments = (tmp_path / "init", trained) if verb is merge else (trained, tmp_path / "init")
            verb(*arguments, tmp_path / "out")
    assert not (tmp_path / "out").exists()
