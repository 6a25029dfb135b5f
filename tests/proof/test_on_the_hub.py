"""`verify org/name`: every kind of folder by ranges, and nobody is asked because a stranger's file says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.hub_server import HubServer, Repo
from safetensors.torch import load_file, save_file

from ailora_tools import convert, initialize, merge, verify
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.cli import main
from ailora_tools.errors import CheckpointError, OptionError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, start, trained, plain, merged."""
    root = tmp_path_factory.mktemp("hub")
    write_checkpoint(root / "model", llama_tensors(), shards=2)
    start = initialize(root / "model", 4, output=root / "start")
    shutil.copytree(start.adapter, root / "trained")
    held = load_file(start.adapter / ADAPTER_WEIGHTS)
    generator = torch.Generator().manual_seed(1)
    moved = {name: W + 0.05 * torch.randn(W.shape, generator=generator) for name, W in held.items()}
    save_file(moved, root / "trained" / ADAPTER_WEIGHTS, {"format": "pt"})
    convert(root / "trained", start.folder, root / "plain")
    merge(root / "model", root / "plain", root / "merged")
    return root


@pytest.fixture
def hub(made: Path, hub_server: HubServer) -> HubServer:
    """All of them as repositories, and nothing of them under the paths that they name."""
    hub_server.reset()
    for name in ("model", "start", "trained", "plain", "merged"):
        hub_server.repos[f"org/{name}"] = Repo(tree(made / name))
    return hub_server


def failed(name: str, **given: str) -> dict[str, str]:
    return {check.name: check.detail for check in verify(name, **given).checks if not check.holds}


def test_a_start_is_checked_by_its_hashes_and_with_the_source_byte_by_byte(hub: HubServer, made: Path) -> None:
    whole = verify("org/start", source="org/model")
    assert whole.holds and whole.source == "org/model" and whole.folder == "org/start"
    (made / "model").rename(made / "gone")
    alone = verify("org/start")
    (made / "gone").rename(made / "model")
    assert alone.holds and alone.source is None


@pytest.mark.parametrize(
    ("file", "check"),
    [("ailora_init/adapter_model.safetensors", "factors"), ("model-00001-of-00002.safetensors", "files"),
     ("tokenizer.json", "companions")],
)  # fmt: skip
def test_a_damaged_start_is_told(file: str, check: str, hub: HubServer, made: Path) -> None:
    files = tree(made / "start")
    files[file] = files[file][:-1] + bytes([files[file][-1] ^ 1])
    hub.repos["org/start"] = Repo(files)
    assert check in failed("org/start", source="org/model")


def test_a_file_that_is_missing_or_would_be_loaded_beside_it_is_told(hub: HubServer, made: Path) -> None:
    files = tree(made / "start")
    hub.repos["org/start"] = Repo({**{name: data for name, data in files.items() if name != "README.md"}, "a.py": b"1"})
    found = failed("org/start")
    assert "README.md is missing" in found["files"] and "a.py" in found["neighbours"]


def test_merged_converted_and_any_adapter_hold(hub: HubServer) -> None:
    merged = verify("org/merged", base="org/model", adapter="org/plain")
    assert merged.holds and merged.what == "merged" and "org/model" in str(merged.source)
    assert verify("org/plain", base="org/model").holds
    assert not verify("org/merged", base="org/model", adapter="org/trained").holds


def test_a_plain_adapter_is_checked_by_itself_where_nothing_is_given(hub: HubServer, made: Path) -> None:
    files = tree(made / "plain")
    told = {**json.loads(files["ailora-result.json"]), "init": "/nowhere", "trained": "/nowhere"}
    config = {**json.loads(files["adapter_config.json"]), "base_model_name_or_path": "org/model"}
    moved = {"ailora-result.json": json.dumps(told).encode(), "adapter_config.json": json.dumps(config).encode()}
    hub.repos["org/plain"] = Repo({**files, **moved})
    hub.log.clear()
    found = verify("org/plain")
    assert found.holds and found.basis == "itself alone"
    assert not [asked for asked in hub.log if "org/model" in asked.path], "a stranger's word sends nobody to the Hub"


def test_a_converted_adapter_on_the_hub_is_what_training_changed(hub: HubServer, made: Path) -> None:
    assert verify("org/plain", init=str(made / "start"), trained="org/trained").holds


def test_matrices_are_read_by_ranges_and_nothing_twice(hub: HubServer, made: Path) -> None:
    hub.log.clear()
    verify("org/merged", base=str(made / "model"), adapter=str(made / "plain"))
    spans = [(asked.file, asked.span) for asked in hub.log if asked.host == "storage" and asked.method == "GET"]
    assert spans and all(span for _, span in spans) and len(spans) == len(set(spans))


def test_what_is_missing_is_asked_for(hub: HubServer, made: Path) -> None:
    files = tree(made / "merged")
    hub.repos["org/bare"] = Repo({name: data for name, data in files.items() if name != "ailora-result.json"})
    with pytest.raises(OptionError, match="--base"):
        verify("org/bare", adapter="org/plain")
    with pytest.raises(OptionError, match="--source"):
        verify("org/plain", source="org/model")
    with pytest.raises(CheckpointError):
        verify("org/nothing")
    done = CliRunner().invoke(
        main, ["verify", "org/merged", "--base", "org/model", "--adapter", "org/trained", "--quiet"]
    )
    assert done.exit_code == 3 and "does not hold" in done.stdout and "Merge again" in done.stdout
