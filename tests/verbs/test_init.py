"""`init` on checkpoints made by hand: which bytes change, which never do, and that a run can be interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.interruption import Interrupting, join_workers
from safetensors.torch import load_file

import ailora_tools.surgery.tensor
from ailora_tools import initialize, verify
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import NumericalError, OutputError
from ailora_tools.surgery.decompose import Decomposition, Recipe, decompose

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def source(folder: Path, shards: int = 1, **options: object) -> Path:
    return write_checkpoint(folder / "source", llama_tensors(**options), shards)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_only_the_bytes_of_the_targets_change(dtype: torch.dtype, shards: int, tmp_path: Path) -> None:
    src = source(tmp_path, shards, dtype=dtype)
    before = tree(src)
    result = initialize(src, 4, output=tmp_path / "out")
    assert tree(src) == before, "the source is never written to"
    touched = {
        (target.stored.file, target.stored.start, target.stored.stop) for target in result.operation.plan.targets
    }
    after = tree(tmp_path / "out")
    assert set(before) < set(after) and all(len(before[name]) == len(after[name]) for name in before)
    assert all(before[name][start:stop] != after[name][start:stop] for name, start, stop in touched)
    for shard, header in open_checkpoint(src).headers.items():
        spans = sorted((start, stop) for file, start, stop in touched if file == shard)
        edges = [0, *(edge for span in spans for edge in span), header.file_size]
        for low, high in zip(edges[::2], edges[1::2], strict=True):
            assert before[shard][low:high] == after[shard][low:high]


def test_other_dtypes_pass_through(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"x.int8": torch.arange(5, dtype=torch.int8), "x.bool": torch.tensor([True, False])}
    tensors |= {"x.f8": torch.ones(6).to(torch.float8_e5m2), "x.i64": torch.arange(3)}
    initialize(write_checkpoint(tmp_path / "source", tensors), 2, output=tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("x.int8", "x.bool", "x.f8", "x.i64"):
        assert torch.equal(found[name].view(torch.uint8), tensors[name].view(torch.uint8))


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    src = source(tmp_path, 2)
    trees = []
    for _ in range(2):
        command = [sys.executable, "-m", "ailora_tools", "init", src, "--rank", "4", "-o", tmp_path / "out"]
        subprocess.run([*command, "--rounding", "stochastic", "--overwrite"], check=True, capture_output=True)
        trees.append(tree(tmp_path / "out"))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("after", [1, 3, 8, 9])
def test_a_resumed_run_gives_the_same_bytes_without_doing_work_twice(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = source(tmp_path, 2, layers=4)
    out = tmp_path / "out"
    whole = tree(initialize(src, 4, output=out).folder)
    with pytest.raises(KeyboardInterrupt):
        initialize(src, 4, output=out, overwrite=True, progress=Interrupting(after))
    assert tree(out) == whole, "the old result stays until the new one is complete"
    join_workers()
    done = []

    def counted(W: torch.Tensor, recipe: Recipe) -> Decomposition:
        done.append(recipe.name)
        return decompose(W, recipe)

    monkeypatch.setattr(ailora_tools.surgery.tensor, "decompose", counted)
    assert tree(initialize(src, 4, output=out, overwrite=True, resume=True).folder) == whole
    assert len(done) == max(0, 8 - after)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_lost_bytes_of_a_journaled_module_are_made_again(tmp_path: Path) -> None:
    """After a power cut the journal may know more than the disk."""
    src, out = source(tmp_path), tmp_path / "out"
    whole = tree(initialize(src, 4, output=out).folder)
    with pytest.raises(KeyboardInterrupt):
        initialize(src, 4, output=out, overwrite=True, progress=Interrupting(3))
    join_workers()
    for file in ("model.safetensors", "ailora_init/adapter_model.safetensors"):
        path = tmp_path / "out.partial" / "tree" / file
        data = bytearray(path.read_bytes())
        data[-len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines() if "copied" not in line))
    assert tree(initialize(src, 4, output=out, overwrite=True, resume=True).folder) == whole


def test_a_failing_run_leaves_the_old_result(tmp_path: Path) -> None:
    src, out = source(tmp_path), tmp_path / "out"
    whole = tree(initialize(src, 4, output=out).folder)
    tensors = llama_tensors()
    tensors["model.layers.1.self_attn.v_proj.weight"][0, 0] = torch.nan
    broken = write_checkpoint(tmp_path / "broken", tensors)
    with pytest.raises(NumericalError):
        initialize(broken, 4, output=out, overwrite=True)
    assert tree(out) == whole and not (tmp_path / "out.partial").exists()
    with pytest.raises(OutputError, match="already exists"):
        initialize(src, 4, output=out)


def test_a_float32_base_updates_the_index(tmp_path: Path) -> None:
    src = source(tmp_path, 2)
    out = initialize(src, 4, base_dtype="float32", output=tmp_path / "out").folder
    stored = {name: value for shard in out.glob("model-*.safetensors") for name, value in load_file(shard).items()}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored.values())
    assert set(index["weight_map"]) == set(stored)
    assert sum(value.dtype == torch.float32 for value in stored.values()) == 4
    assert verify(out).holds


def test_a_single_file_is_a_model(tmp_path: Path) -> None:
    src = source(tmp_path)
    (src / "model.safetensors").rename(src / "some.safetensors")
    (src / "unrelated.txt").write_text("x")
    out = initialize(src / "some.safetensors", 2, output=tmp_path / "out").folder
    assert {"some.safetensors", "config.json"} < set(tree(out)) and "unrelated.txt" not in tree(out)
    assert verify(out).holds


def test_linked_files_of_a_cache_are_copied_not_linked(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--model"
    snapshot, src = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot.mkdir(parents=True)
    source(tmp_path).rename(src)
    for path in src.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    before = tree(src)
    out = initialize(snapshot, 2, output=tmp_path / "out").folder
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert {path.name for path in src.iterdir()} <= {path.name for path in out.iterdir()}
    assert tree(src) == before


def test_what_the_adapter_config_says(tmp_path: Path) -> None:
    result = initialize(source(tmp_path), 4, output=tmp_path / "out")
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["bias"]) == (4, 4, 0.0, "none")
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == str(tmp_path / "out")
    assert (config["task_type"], config["peft_type"]) == ("CAUSAL_LM", "LORA")
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_the_manifest_states_every_number_and_the_card_repeats_the_worst(tmp_path: Path) -> None:
    result = initialize(source(tmp_path), 4, output=tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "ailora.json").read_text())
    assert {module["tensor"] for module in manifest["modules"]} == {t.tensor for t in result.operation.plan.targets}
    for module in manifest["modules"]:
        assert len(module["singular_values"]) == 4 and module["rule"] in ("principal", "minor")
        assert all(module[key] is not None for key in ("reconstruction_error", "survival", "gap", "route", "rounding"))
    card = (tmp_path / "out" / "README.md").read_text()
    worst = max(module["reconstruction_error"] for module in manifest["modules"])
    assert f"{worst:.2e}" in card and f'LlamaForCausalLM.from_pretrained("{tmp_path / "out"}"' in card


def test_layers_and_roles(tmp_path: Path) -> None:
    src = source(tmp_path, layers=4)
    assert len(initialize(src, 2, layers="1-2", output=tmp_path / "a").manifest.modules) == 4
    assert {m.role for m in initialize(src, 2, roles=("v",), output=tmp_path / "b").manifest.modules} == {"v"}
    every = initialize(src, 2, roles=("q", "k", "v", "o"), method="milora", output=tmp_path / "c").manifest.modules
    assert len(every) == 16
