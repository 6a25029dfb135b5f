"""`verify` and `merge` over two and three processes of a real torchrun: what one process says and writes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build
from kit.gang import run
from kit.hub_server import HubServer, Repo
from safetensors.torch import load_file, save_file

from ailora_tools import initialize, merge
from ailora_tools.cli import main as command

SIZES = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
CALLS = {
    "no manifest": ["verify", "base"],
    "no base": ["verify", "none"],
    "a merged model": ["verify", "whole"],
    "a merged model of another base": ["verify", "whole", "--base", "tuned"],
    "a merged model on the Hub": ["verify", "org/whole", "--base", "org/base", "--adapter", "plain"],
    "a fused model": ["verify", "gpt2"],
    "hashes alone": ["verify", "orphan"],
    "the source on the Hub": ["verify", "out", "--source", "org/base"],
    "another source": ["verify", "out", "--source", "tuned"],
    "a byte is another": ["verify", "flipped"],
    "a shard is cut": ["verify", "cut"],
    "the original's shards": ["verify", "swapped"],
    "it holds": ["verify", "out"],
}
MERGED = {
    "the start": ["merge", "out", "out/ailora_init"],
    "wider": ["merge", "out", "out/ailora_init", "--base-dtype", "float32"],
    "with DoRA": ["merge", "gpt2", "gpt2/ailora_init"],
    "the Hub": ["merge", "org/base", "plain"],
    "the wrong base": ["merge", "base", "out/ailora_init"],
    "no finite adapter": ["merge", "base", "infinite"],
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
    initialize(here / "base", 2, method="lora", output=here / "lora")
    for name in ("plain", "infinite"):
        shutil.copytree(here / "lora" / "ailora_init", here / name)
        path = here / name / "adapter_model.safetensors"
        value = 0.01 if name == "plain" else float("inf")
        save_file({key: held + value * (held == 0) for key, held in load_file(path).items()}, path, {"format": "pt"})
    merge(here / "base", here / "plain", here / "whole")
    (here / "tuned").rename(here / "moved")
    write_checkpoint(here / "tuned", {name: value + 1 for name, value in tensors.items()}, shards=3, **SIZES)
    return here


@dataclass(frozen=True)
class Said:
    """What was printed and the exit code of each call, what was written, and the bytes that were read of the Hub."""

    printed: str
    codes: list[int]
    written: dict[str, bytes]
    sent: int


def calls(out: Path) -> list[list[str]]:
    """Those of `merge` first: what ends torchrun with an error is at the end of neither."""
    merged = [[*call, "-o", str(out / name)] for name, call in MERGED.items()]
    return [[*call, "--json", "--quiet"] for call in (*merged, *CALLS.values())]


def alone(out: Path, capsys: pytest.CaptureFixture[str], hub_server: HubServer) -> Said:
    before, printed, codes = hub_server.sent, "", []
    for call in calls(out):
        with pytest.raises(SystemExit) as ended:
            command(call)
        printed += capsys.readouterr().out
        codes.append(int(ended.value.code or 0))
    return Said(printed, codes, tree(out), hub_server.sent - before)


@pytest.mark.parametrize("ranks", [2, 3], ids="{} processes".format)
def test_several_processes_say_and_write_what_one_does(
    ranks: int, folders: Path, tmp_path: Path, hub_server: HubServer,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hub_server.reset()
    hub_server.repos = {f"org/{name}": Repo(tree(folders / name)) for name in ("base", "whole")}
    monkeypatch.chdir(folders)
    wanted, out = alone(tmp_path / "out", capsys, hub_server), tmp_path / "out"
    shutil.rmtree(out)
    before = hub_server.sent
    found = run(tmp_path / "gang", ranks, calls(out))
    assert found.out == wanted.printed and "Traceback" not in found.err
    assert list(found.codes[0]) == wanted.codes and set(wanted.codes) == {0, 1, 3}
    assert all(set(codes) <= {0, 1} for rank, codes in found.codes.items() if rank)
    assert tree(out) == wanted.written
    assert 0 < hub_server.sent - before <= wanted.sent
    assert wanted.codes == [0, 0, 0, 0, 1, 1, 1, 0, 0, 3, 0, 0, 0, 0, 3, 3, 3, 3, 0]
