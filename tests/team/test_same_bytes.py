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
from kit.gang import Gang, run
from kit.hub_server import HubServer, Repo

from ailora_tools.cli import main as command

LAYERS, HIDDEN, KV = 3, 96, 48
SIZES = {"hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2}
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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder of all calls: `base`, a fine-tune of it, and a fused model that transformers made."""
    folder = tmp_path_factory.mktemp("models")
    tensors = llama_tensors(LAYERS, HIDDEN, KV)
    write_checkpoint(folder / "base", tensors, shards=2, **SIZES)
    write_checkpoint(folder / "tuned", {name: value + 0.01 * value.sin() for name, value in tensors.items()}, **SIZES)
    build("gpt2").save_pretrained(folder / "fused")
    return folder


def told(folder: Path) -> dict[str, bytes]:
    """A folder without the lines that tell the time and the processes, nor hashes of what holds those."""
    found = tree(folder)
    for name in {"ailora.json", "analysis.json"} & found.keys():
        document = json.loads(found[name])
        processes = document["tool"].pop("processes", None)
        for key in ("sha256", "created", "seconds"):
            document.pop(key, None)
        found[name] = json.dumps(document).encode()
        found["processes"] = str(processes).encode()
    found.pop("report.html", None)  # of analysis.json alone
    return found


def calls(out: Path) -> list[list[str]]:
    return [[*words, "--quiet", "-o", str(out / name)] for name, words in CALLS.items()]


@dataclass(frozen=True)
class Both:
    """A gang, what it and one process alone wrote to the same places, by call, and the bytes that each read of the
    Hub."""

    gang: Gang
    found: dict[str, dict[str, bytes]]
    wanted: dict[str, dict[str, bytes]]
    sent: tuple[int, int]


@pytest.fixture(scope="module", params=[2, 3], ids="{} processes".format)
def both(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory, hub_server: HubServer
) -> Iterator[Both]:
    out, home = tmp_path_factory.mktemp("out"), Path.cwd()
    hub_server.reset()
    hub_server.repos = {f"org/{name}": Repo(tree(models / name)) for name in ("base", "tuned")}
    os.chdir(models)
    try:
        for call in calls(out):
            command(call, standalone_mode=False)
        wanted, alone = {name: told(out / name) for name in CALLS}, hub_server.sent
        shutil.rmtree(out)
        gang = run(out.with_name("gang"), request.param, calls(out))
        assert gang.code == 0, gang.err
        yield Both(gang, {name: told(out / name) for name in CALLS}, wanted, (hub_server.sent - alone, alone))
        shutil.rmtree(out.with_name("gang"))
    finally:
        os.chdir(home)
        hub_server.reset()


@pytest.mark.parametrize("name", CALLS)
def test_several_processes_write_the_bytes_of_one(name: str, both: Both) -> None:
    found, wanted = dict(both.found[name]), dict(both.wanted[name])
    assert (found.pop("processes"), wanted.pop("processes")) == (b"%d" % len(both.gang.codes), b"None")
    assert found == wanted


def test_the_first_alone_speaks(both: Both) -> None:
    assert both.gang.out.count("adapter   ") == sum(words[0] == "init" for words in CALLS.values())
    assert "note:" not in both.gang.err and "Traceback" not in both.gang.err


def test_the_hub_is_read_no_more_than_by_one_process(both: Both) -> None:
    together, alone = both.sent
    assert 0 < together <= alone
