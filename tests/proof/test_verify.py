"""`verify` finds each way in which a folder can go wrong, with the source at hand and without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from safetensors.torch import load_file, save_file

from ailora_tools import initialize, verify
from ailora_tools.errors import CheckpointError, VerificationError
from ailora_tools.verbs.verify import Verification

Q0 = "model.layers.0.self_attn.q_proj.weight"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    write_checkpoint(root / "source", llama_tensors(), shards=2)
    initialize(root / "source", 4, output=root / "out")
    return root


@pytest.fixture(params=["with source", "hashes alone"])
def folder(written: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy to damage; the source stays where the manifest says, or is hidden from it."""
    shutil.copytree(written / "out", tmp_path / "out")
    if request.param == "hashes alone":
        hidden = written / "source.hidden"
        (written / "source").rename(hidden)
        request.addfinalizer(lambda: hidden.rename(written / "source"))
    return tmp_path / "out"


def failed(result: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in result.checks if not check.holds}


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "ailora_init" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][tensor]


def test_what_init_wrote_holds_and_the_basis_is_named(folder: Path, written: Path) -> None:
    result = verify(folder)
    assert result.holds and not failed(result)
    there = (written / "source").exists()
    assert result.source == (str(written / "source") if there else None)
    assert ("recombination" in {check.name for check in result.checks}) == there


def test_a_moved_folder_and_a_given_source_are_fine(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "out", tmp_path / "elsewhere")
    shutil.copytree(written / "source", tmp_path / "copy")
    assert verify(tmp_path / "elsewhere", source=tmp_path / "copy").holds


def test_a_flipped_byte_anywhere_is_found(folder: Path) -> None:
    for name, data in tree(folder).items():
        for position in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
            flipped = bytearray(data)
            flipped[position] ^= 1
            (folder / name).write_bytes(flipped)
            if name == "ailora.json":
                with pytest.raises(VerificationError):
                    verify(folder)
            else:
                assert name in failed(verify(folder))["files"], (name, position)
            (folder / name).write_bytes(data)
    assert verify(folder).holds


def test_the_original_in_place_of_the_residual(folder: Path, written: Path) -> None:
    source = next(path for path in (written / "source", written / "source.hidden") if path.exists())
    for shard in source.glob("*.safetensors"):
        shutil.copy(shard, folder / shard.name)
    found = failed(verify(folder))
    assert "4 of the original, not residualised" in found["base"] and "was changed" in found["files"]


def test_a_base_residualised_twice(folder: Path) -> None:
    adapter = load_file(folder / "ailora_init" / "adapter_model.safetensors")

    def subtract(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            key = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{key}.lora_A.weight" in adapter:
                delta = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
                tensors[name] = (tensors[name].float() - delta).to(tensors[name].dtype)

    for shard in folder.glob("*.safetensors"):
        edit_tensors(shard, subtract)
    assert "4 residualised twice" in failed(verify(folder))["base"]


def test_the_base_of_another_model(folder: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", llama_tensors(seed=5), shards=2)
    for shard in (tmp_path / "other").glob("*.safetensors"):
        shutil.copy(shard, folder / shard.name)
    assert "of another model" in failed(verify(folder))["base"]


def test_another_source_is_refused(written: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "longer", llama_tensors(layers=3), shards=2)
    assert "not the model" in failed(verify(written / "out", source=tmp_path / "longer"))["source"]
    write_checkpoint(tmp_path / "tuned", llama_tensors(seed=9), shards=2)
    assert "was changed in" in failed(verify(written / "out", source=tmp_path / "tuned"))["source"]
    with pytest.raises(CheckpointError, match="no such file"):
        verify(written / "out", source=tmp_path / "nowhere")


def test_an_untouched_tensor_of_the_source_that_differs(written: Path, tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.norm.weight"][0] += 1
    write_checkpoint(tmp_path / "near", tensors, shards=2)
    assert failed(verify(written / "out", source=tmp_path / "near")) == {
        "untouched bytes": "changed: model.norm.weight"
    }


@pytest.mark.parametrize("tag", ["pissa", "pissa_niter_4", "olora", False, None, "gaussian", 1])
def test_an_adapter_tag_that_would_change_the_base(folder: Path, tag: object) -> None:
    edit_config(folder, init_lora_weights=tag)
    assert f"init_lora_weights is {tag!r}" in failed(verify(folder))["adapter config"]


def test_target_modules_that_hit_nothing_or_miss_something(folder: Path) -> None:
    edit_config(folder, target_modules=["q_proj", "v_proj", "qkv"])
    assert "hit nothing: qkv" in failed(verify(folder))["adapter config"]
    edit_config(folder, target_modules=["q_proj"])
    assert "do not reach model.layers" in failed(verify(folder))["adapter config"]


@pytest.mark.parametrize(
    "change", [{"lora_alpha": 8}, {"r": 2}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 1}}]
)
def test_a_scaling_that_differs(folder: Path, change: dict[str, object]) -> None:
    edit_config(folder, **change)
    assert "expected (4, 4, False)" in failed(verify(folder))["adapter config"]


def test_missing_extra_and_misshapen_adapter_tensors(folder: Path) -> None:
    path = folder / "ailora_init" / "adapter_model.safetensors"
    whole = load_file(path)
    for change, words in (
        (lambda tensors: tensors.pop(KEY), f"{KEY} is missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "extra belongs to no module"),
        (lambda tensors: tensors.update({KEY: torch.zeros(3, 48)}), f"{KEY} has shape (3, 48), expected (4, 48)"),
    ):
        edit_tensors(path, change)
        assert words in failed(verify(folder))["adapter tensors"]
        save_file(whole, path, {"format": "pt"})


def test_truncated_and_missing_shards(folder: Path) -> None:
    shard = shard_of(folder, Q0)
    data = shard.read_bytes()
    shard.write_bytes(data[:-10])
    found = failed(verify(folder))
    assert f"{shard.name} has {len(data) - 10:,} bytes, expected {len(data):,}" in found["files"]
    assert "cannot be read" in found["base"]
    shard.unlink()
    assert f"{shard.name} is missing" in failed(verify(folder))["files"]


@pytest.mark.parametrize("name", ["adapter_config.json", "pytorch_model.bin", "model.safetensors"])
def test_files_that_loaders_would_pick_up(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{}")
    assert failed(verify(folder)) == {"neighbours": f"would be loaded with the base: {name}"}


def test_a_trained_adapter_beside_is_no_fault(folder: Path) -> None:
    (folder / "trained").mkdir()
    (folder / "trained" / "adapter_config.json").write_text("{}")
    assert verify(folder).holds


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="init"):
        verify(tmp_path)


def test_plain_lora_is_checked_against_its_untouched_base(written: Path, tmp_path: Path) -> None:
    initialize(written / "source", 4, method="lora", output=tmp_path / "lora")
    assert sorted(tree(tmp_path / "lora")) == [
        "README.md",
        "ailora.json",
        "ailora_init/README.md",
        "ailora_init/adapter_config.json",
        "ailora_init/adapter_model.safetensors",
        "lr_groups.json",
    ]
    assert verify(tmp_path / "lora").holds


@pytest.mark.parametrize("method", ["ailora", "pissa", "nlora", "random-orthonormal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0, 100.0])
def test_fresh_folders_hold_at_full_rank_and_any_scale(
    scale: float, dtype: torch.dtype, method: str, tmp_path: Path
) -> None:
    """At full rank the residual is the subtraction's own rounding, and nothing else."""
    tensors = {name: (scale * value.double()).to(dtype) for name, value in llama_tensors(layers=1).items()}
    write_checkpoint(tmp_path / "source", tensors)
    initialize(tmp_path / "source", 24, method=method, output=tmp_path / "out")
    assert not failed(verify(tmp_path / "out"))
    (tmp_path / "source").rename(tmp_path / "gone")
    assert not failed(verify(tmp_path / "out"))


def test_a_snapshot_in_the_cache_of_the_hub_holds(written: Path, tmp_path: Path) -> None:
    """There every file is a link to a blob beside; a link to anywhere else is told."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, (name, data) in enumerate(tree(written / "out").items()):
        (blobs / str(number)).write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blobs / str(number))
    assert verify(snapshot).holds
    blobs.rename(tmp_path / "elsewhere")
    for path in snapshot.rglob("*.json"):
        target = tmp_path / "elsewhere" / path.readlink().name
        path.unlink()
        path.symlink_to(target)
    assert "is a link" in failed(verify(snapshot))["files"]


def test_one_file_or_its_folder_may_be_the_source(tmp_path: Path) -> None:
    """Beside one file only config.json is known: the tokenizer is neither missed nor foreign."""
    folder = write_checkpoint(tmp_path / "model", llama_tensors())
    for model, other in ((folder, folder / "model.safetensors"), (folder / "model.safetensors", folder)):
        out = initialize(model, 4, output=tmp_path / f"of {model.name}").folder
        assert verify(out, source=other).holds and verify(out).holds


def test_an_honest_error_that_is_large_is_said(tmp_path: Path) -> None:
    """The Nystroem part of a nearly singular block is larger than W: bfloat16 holds no such residual."""
    tensors = llama_tensors(layers=1)
    W = tensors["model.layers.0.self_attn.q_proj.weight"]
    W[:4, :4] = W[:4, :1] * torch.ones(4) + 1e-3 * torch.eye(4)
    write_checkpoint(tmp_path / "source", tensors)
    initialize(tmp_path / "source", 4, method="nlora", output=tmp_path / "out")
    checks = {check.name: check for check in verify(tmp_path / "out").checks}
    assert checks["recombination"].holds and "step 0 is not the original model" in checks["recombination"].detail
