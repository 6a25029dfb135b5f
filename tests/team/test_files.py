"""`verify` over two and three processes of a real torchrun says what one process says, whatever is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build
from kit.gang import Gang, run
from kit.hub_server import HubServer, Repo

from ailora_tools import initialize
from ailora_tools.cli import main as command

SIZES = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
CALLS = {
    "no manifest": ["verify", "base"],
    "no base": ["verify", "none"],
    "a fused model": ["verify", "gpt2"],
    "hashes alone": ["verify", "orphan"],
    "the source on the Hub": ["verify", "out", "--source", "org/base"],
    "another source": ["verify", "out", "--source", "tuned"],
    "a byte is another": ["verify", "flipped"],
    "a shard is cut": ["verify", "cut"],
    "the original's shards": ["verify", "swapped"],
    "it holds": ["verify", "out"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder of all calls: models, what `init` made of them, and what became of that."""
    here = tmp_path_factory.mktemp("folders")
    tensors = llama_tensors(2, 96, 48)
    write_checkpoint(here / "base", tensors, shards=3, **SIZES)
    write_checkpoint(here / "tuned", {name: value + 0.01 * value.sin() for name, value in tensors.items()}, **SIZES)
    build("gpt2").save_pretrained(here / "fused")
    initialize(here / "base", 4, output=here / "out")
    initialize(here / "base", 4, no_base=True, output=here / "none")
    initialize(here / "fused", 4, dora=True, output=here / "gpt2")
    initialize(here / "tuned", 4, output=here / "orphan")
    for name in ("flipped", "cut", "swapped"):
        shutil.copytree(here / "out", here / name)
    for path in (here / "flipped").glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    first, *_ = sorted((here / "cut").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-10])
    for path in (here / "base").glob("*.safetensors"):
        shutil.copy(path, here / "swapped" / path.name)
    (here / "tuned").rename(here / "moved")
    write_checkpoint(here / "tuned", {name: value + 1 for name, value in tensors.items()}, shards=3, **SIZES)
    return here


@dataclass(frozen=True)
class Said:
    """What was printed and the exit code of each call, and the bytes that all of them read of the Hub."""

    printed: list[str]
    codes: list[int]
    sent: int


def alone(capsys: pytest.CaptureFixture[str], hub_server: HubServer) -> Said:
    before, printed, codes = hub_server.sent, [], []
    for call in CALLS.values():
        with pytest.raises(SystemExit) as ended:
            command([*call, "--json", "--quiet"])
        printed.append(capsys.readouterr().out)
        codes.append(int(ended.value.code or 0))
    return Said(printed, codes, hub_server.sent - before)


@pytest.fixture(params=[2, 3], ids="{} processes".format)
def gang(
    request: pytest.FixtureRequest, folders: Path, tmp_path: Path, hub_server: HubServer,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> Iterator[tuple[Gang, Said, int]]:  # fmt: skip
    hub_server.reset()
    hub_server.repos = {"org/base": Repo(tree(folders / "base"))}
    monkeypatch.chdir(folders)
    wanted = alone(capsys, hub_server)
    before = hub_server.sent
    found = run(tmp_path / "gang", request.param, [[*call, "--json", "--quiet"] for call in CALLS.values()])
    yield found, wanted, hub_server.sent - before
    hub_server.reset()


def test_several_processes_say_what_one_says(gang: tuple[Gang, Said, int]) -> None:
    found, wanted, sent = gang
    assert found.out == "".join(wanted.printed) and "Traceback" not in found.err
    assert list(found.codes[0]) == wanted.codes
    assert set(wanted.codes) == {0, 1, 3} and all(set(codes) <= {0, 1} for rank, codes in found.codes.items() if rank)
    assert 0 < sent <= wanted.sent
    holds = [json.loads(text)["holds"] for text in wanted.printed if text]
    assert holds == [True, True, True, True, False, False, False, False, True]
