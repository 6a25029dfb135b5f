"""Two and three processes of a real torchrun write what one process writes, from a folder and from the Hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build
from kit.gang import Gang, run, told
from kit.hub_server import HubServer, Repo

from ailora_tools.cli import main as command

LAYERS, HIDDEN, KV = 3, 96, 48
SIZES = {"hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 192,
         "vocab_size": 64}  # fmt: skip
CALLS = {
    "a residual base": ["init", "base", "--rank", "4", "--rounding", "stochastic"],
    "no base": ["init", "base", "--rank", "4", "--no-base"],
    "a fused model": ["init", "fused", "--rank", "4", "--base-dtype", "float32"],
    "no shared folder": ["init", "base", "--rank", "5", "--dora", "--no-shared-folder"],
    "fused, no shared folder": ["init", "fused", "--rank", "2", "--no-shared-folder"],
    "an analysis": ["analyze", "base", "--heads"],
    "a comparison": ["analyze", "base", "--against", "tuned"],
    "the Hub": ["init", "org/base", "--rank", "4"],
    "the Hub, compared": ["analyze", "org/base", "--against", "org/tuned"],
}

ASKING = {  # the class, which takes a process with transformers for each call
    "embeddings beside": ["init", "base", "--rank", "4", "--modules-to-save", "embed_tokens"],
    "a class that builds less": ["init", "surplus", "--rank", "4"],
    "an analysis of such a class": ["analyze", "surplus"],
}
FEW = {name: CALLS[name] for name in ("a residual base", "a comparison", "the Hub")}
GANGS = [
    pytest.param((2, CALLS), id="2 processes"),
    pytest.param((3, FEW), id="3 processes"),
    pytest.param((2, ASKING), id="2 processes and a class", marks=pytest.mark.faults),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder of all calls: `base`, a fine-tune of it, a fused model that transformers made, and one whose
    class, asked beside the work, builds two of three layers."""
    folder = tmp_path_factory.mktemp("models")
    tensors = llama_tensors(LAYERS, HIDDEN, KV)
    write_checkpoint(folder / "base", tensors, shards=2, **SIZES)
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    write_checkpoint(folder / "tuned", {name: value + 0.01 * value.sin() for name, value in tensors.items()}, **SIZES)
    build("gpt2").save_pretrained(folder / "fused")
    write_checkpoint(folder / "surplus", tensors, **SIZES, model_type="brand_new", num_hidden_layers=LAYERS - 1)
    return folder


@dataclass(frozen=True)
class Both:
    """A gang; what it wrote, by call, as `told` and as it is, and what one process alone wrote to the same places; the
    bytes that each read of the Hub."""

    gang: Gang
    found: dict[str, dict[str, bytes]]
    raw: dict[str, dict[str, bytes]]
    wanted: dict[str, dict[str, bytes]]
    sent: tuple[int, int]


@pytest.fixture(scope="module", params=GANGS)
def both(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory, hub_server: HubServer
) -> Iterator[Both]:
    (ranks, chosen), out, home = request.param, tmp_path_factory.mktemp("out"), Path.cwd()
    calls = [[*words, "--quiet", "-o", str(out / name)] for name, words in chosen.items()]
    hub_server.reset()
    hub_server.repos = {f"org/{name}": Repo(tree(models / name)) for name in ("base", "tuned")}
    os.chdir(models)
    try:
        for call in calls:
            command(call, standalone_mode=False)
        wanted, alone = {name: told(out / name) for name in chosen}, hub_server.sent
        shutil.rmtree(out)
        gang = run(out.with_name("gang"), ranks, calls)
        assert gang.code == 0, gang.err
        sent = (hub_server.sent - alone, alone)
        yield Both(gang, *({name: of(out / name) for name in chosen} for of in (told, tree)), wanted, sent)
        shutil.rmtree(out.with_name("gang"))
    finally:
        os.chdir(home)
        hub_server.reset()


def test_several_processes_write_the_bytes_of_one(both: Both) -> None:
    for name, found in both.found.items():
        assert found == both.wanted[name], name


def test_the_card_of_the_source_comes_along(both: Both) -> None:
    for name in {"a residual base", "the Hub"} & both.found.keys():
        assert b"\nlicense: mit\n" in both.found[name]["README.md"]
        assert both.found[name]["ailora_init/README.md"].endswith(b"\n\n# Base\n")


def test_the_result_tells_how_many_processes_there_were(both: Both) -> None:
    for files in both.raw.values():
        document = json.loads(files.get("ailora.json") or files["analysis.json"])
        assert document["tool"]["processes"] == str(len(both.gang.codes))


def test_the_first_alone_speaks(both: Both) -> None:
    assert both.gang.out.count("adapter   ") == sum("ailora.json" in files for files in both.raw.values())
    assert "note:" not in both.gang.err and "Traceback" not in both.gang.err


def test_the_hub_is_read_no_more_than_by_one_process(both: Both) -> None:
    together, alone = both.sent
    assert together <= alone
