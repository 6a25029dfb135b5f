"""Models on the Hub through the real client: the same numbers as from a folder, few bytes, no credentials astray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.hub_server import Asked, Fault, HubServer, Repo, always, anything, in_storage
from kit.interruption import Interrupting, join_workers, press_ctrl_c, start
from kit.real_models import minilm, smollm2
from kit.waiting import SAFETY, Gate, until
from safetensors.torch import save_file

from ailora_tools import AiloraError, analyze, initialize, inspect_checkpoint, verify
from ailora_tools.checkpoint import remote
from ailora_tools.checkpoint.source import open_files, parse_hub_name
from ailora_tools.cli.group import main as command_line
from ailora_tools.errors import CheckpointError, OptionError
from ailora_tools.output import base as base_room

NAME = "org/model"
TOKEN = "Bearer hf_secret"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are short here."""
    monkeypatch.setattr(remote, "Backoff", lambda: remote_backoff)


remote_backoff = remote.Backoff(first=0.01, longest=0.05)


def upload(hub: HubServer, folder: Path, name: str = NAME, **options: Any) -> Repo:
    hub.repos[name] = Repo(tree(folder), **options)
    return hub.repos[name]


def llama(folder: Path, **options: Any) -> Path:
    return write_checkpoint(folder, llama_tensors(layers=3, **options), shards=2)


def cli(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ailora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def run(*arguments: object) -> Result:
    """In this process."""
    return CliRunner().invoke(command_line, [*map(str, arguments)], catch_exceptions=False)


def weights(folder: Path) -> dict[str, bytes]:
    """Everything that does not name the source or the folder."""
    named = ("ailora.json", "README.md", "adapter_config.json")
    return {name: data for name, data in tree(folder).items() if not name.endswith(named)}


def download(hub: HubServer, name: str = NAME) -> Path:
    """Into the cache, by the client itself."""
    import huggingface_hub

    return Path(huggingface_hub.snapshot_download(name))


# ---- the same numbers


@pytest.mark.parametrize("make", [minilm, smollm2, llama])
def test_folder_cache_and_hub_give_the_same_numbers(hub: HubServer, make: Any, tmp_path: Path) -> None:
    here = make(tmp_path / "model")
    commit = upload(hub, here).commit
    layers = None if make is llama else "0-1"
    documents = [analyze(source, output=tmp_path / out, layers=layers, rank=4).document
                 for source, out in ((here, "a"), (NAME, "b"))]  # fmt: skip
    written = [weights(initialize(source, 4, output=tmp_path / out, layers=layers).folder)
               for source, out in ((here, "c"), (NAME, "d"))]  # fmt: skip
    download(hub)
    hub.log.clear()
    documents.append(analyze(NAME, output=tmp_path / "e", layers=layers, rank=4).document)
    written.append(weights(initialize(NAME, 4, output=tmp_path / "f", layers=layers).folder))
    assert hub.count("storage") == 0, "what is in the cache is read there"
    for document in documents:
        assert document["matrices"] == documents[0]["matrices"]
        assert document["findings"] == documents[0]["findings"]
    assert written[0] == written[1] == written[2]
    assert [document["model"]["revision"] for document in documents] == [None, commit, commit]


def test_the_manifest_names_repository_and_commit_and_verify_finds_them(hub: HubServer, tmp_path: Path) -> None:
    commit = upload(hub, llama(tmp_path / "model")).commit
    result = initialize(NAME, 4, output=tmp_path / "out")
    source = result.manifest.source  # type: ignore[union-attr]
    assert (source["location"], source["revision"]) == (f"hf://{NAME}", commit)
    hub.log.clear()
    assert verify(tmp_path / "out").source is None and not hub.log, "hashes decide, nothing is downloaded again"
    result = verify(tmp_path / "out", source=f"{NAME}@{commit}")
    assert result.holds and result.source == NAME
    upload(hub, llama(tmp_path / "other", seed=1))
    assert not verify(tmp_path / "out", source=NAME).holds


def test_a_method_without_a_base_names_the_repository_for_peft(hub: HubServer, tmp_path: Path) -> None:
    commit = upload(hub, llama(tmp_path / "model")).commit
    result = initialize(NAME, 4, method="lora", output=tmp_path / "out")
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (NAME, commit)


def test_a_tuned_checkpoint_and_an_adapter_may_be_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    here = llama(tmp_path / "model")
    upload(hub, here)
    adapter = initialize(here, 4, output=tmp_path / "tuned").adapter
    commit = upload(hub, adapter, "org/adapter").commit
    near = analyze(here, against=[adapter], output=tmp_path / "a").document
    far = analyze(NAME, against=["org/adapter"], output=tmp_path / "b").document
    assert [row["changes"] for row in near["matrices"]] == [row["changes"] for row in far["matrices"]]
    assert far["against"][0] == {**near["against"][0], "name": "adapter", "location": "org/adapter", "revision": commit}
    both = analyze(NAME, against=[NAME], output=tmp_path / "c").document
    assert all(row["changes"][0]["metrics"]["relative_change"] == 0 for row in both["matrices"])


# ---- few bytes, few requests


@pytest.mark.parametrize("make", [minilm, smollm2])
def test_analyze_reads_the_targets_and_little_else(hub: HubServer, make: Any, tmp_path: Path) -> None:
    upload(hub, make(tmp_path / "model"))
    result = analyze(NAME, output=tmp_path / "out")
    checkpoint = inspect_checkpoint(tmp_path / "model").checkpoint
    headers = sum(header.data_start for header in checkpoint.headers.values())
    wanted = result.document["model"]["bytes_read"]
    assert result.traffic is not None
    read = sum(span(asked) for asked in hub.log if asked.span)
    assert result.traffic.nbytes == read
    assert wanted <= read <= 1.05 * (wanted + headers)
    shards = len(checkpoint.headers)
    runs = len({(asked.file, asked.span) for asked in hub.log if in_storage(asked)}) - shards
    assert hub.count("storage") + hub.count("hub", "HEAD", ".safetensors") <= 2 * shards + runs
    assert hub.count("hub", "HEAD", ".safetensors") == shards, "one resolve a file"
    asked = [entry for entry in hub.log if not entry.path.startswith("/api/agent")]
    assert result.traffic.requests == len(asked) and result.traffic.retries == 0


def test_init_without_a_base_reads_the_targets_alone(hub: HubServer, tmp_path: Path) -> None:
    upload(hub, minilm(tmp_path / "model"))
    made = initialize(NAME, 4, no_base=True, output=tmp_path / "out")
    checkpoint = inspect_checkpoint(tmp_path / "model").checkpoint
    headers = sum(header.data_start for header in checkpoint.headers.values())
    traffic = made.operation.checkpoint.files.traffic
    assert traffic is not None and traffic.nbytes <= 1.05 * (made.operation.plan.read_bytes + headers)
    assert verify(made.folder).holds and verify(made.folder, source=tmp_path / "model").holds


def span(asked: Asked) -> int:
    start, last = map(int, (asked.span or "").removeprefix("bytes=").split("-"))
    return last - start + 1


def test_neighbours_are_read_together(hub: HubServer, tmp_path: Path) -> None:
    upload(hub, minilm(tmp_path / "model"))
    analyze(NAME, output=tmp_path / "out")
    assert hub.count("storage") == 1 + 6, "query and value lie side by side: one request a layer"


def test_init_reads_every_byte_once(hub: HubServer, tmp_path: Path) -> None:
    repo = upload(hub, llama(tmp_path / "model"))
    result = initialize(NAME, 4, output=tmp_path / "out")
    spans = [(asked.file, asked.span) for asked in hub.log if in_storage(asked)]
    assert len(spans) == len(set(spans))
    traffic = result.operation.checkpoint.files.traffic
    assert traffic is not None
    size = sum(map(len, repo.files.values()))
    headers = sum(header.data_start for header in result.operation.checkpoint.headers.values())
    assert size <= traffic.nbytes <= size + sum(min(65536, len(data)) for data in repo.files.values())
    assert headers > 0


def test_a_long_header_takes_a_second_request(hub: HubServer, tmp_path: Path) -> None:
    tensors = {f"t.{number:06d}": torch.zeros(1) for number in range(2000)}
    folder = write_checkpoint(tmp_path / "model", {**llama_tensors(), **tensors})
    upload(hub, folder)
    found = inspect_checkpoint(NAME)
    assert found.checkpoint.headers["model.safetensors"].data_start > 65536
    assert hub.count("storage") == 2


def test_what_is_downloaded_stays_in_the_cache(hub: HubServer, tmp_path: Path) -> None:
    repo = upload(hub, llama(tmp_path / "model"))
    analyze(NAME, output=tmp_path / "a", download=True)
    hub.log.clear()
    analyze(NAME, output=tmp_path / "b")
    assert hub.count("storage") == 0
    cached = {path.name for path in Path(os.environ["HF_HOME"]).rglob("*.safetensors")}
    assert cached == {name for name in repo.files if name.endswith(".safetensors")}


def test_nothing_is_left_in_the_cache_otherwise(hub: HubServer, tmp_path: Path) -> None:
    upload(hub, llama(tmp_path / "model"))
    initialize(NAME, 4, output=tmp_path / "out")
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.safetensors"))


def test_reading_goes_on_while_matrices_are_worked_on(hub: HubServer, tmp_path: Path) -> None:
    """The first matrices are done only when the third has been asked for."""
    from ailora_tools.checkpoint.stream import find_device, stream
    from ailora_tools.targets.plan import make_plan

    upload(hub, write_checkpoint(tmp_path / "model", llama_tensors(layers=6)))
    found = inspect_checkpoint(NAME)
    plan = make_plan(found.checkpoint)
    already = hub.count("storage")

    def work(target: Any, W: Any) -> None:
        until(lambda: hub.count("storage") - already > 2)

    list(stream(found.checkpoint.files, plan.targets, work, find_device("cpu"), pytest.fail))
    assert hub.count("storage") - already == 6


# ---- names, revisions, folders


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ("org/name", None, "")),
        ("org/name@v1.0", ("org/name", "v1.0", "")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1", "")),
        ("hf://org/name@main", ("org/name", "main", "")),
        ("https://huggingface.co/org/name", ("org/name", None, "")),
        ("https://huggingface.co/org/name/tree/main/unet", ("org/name", "main", "unet")),
    ],
)
def test_names(text: str, expected: tuple[str, str | None, str]) -> None:
    name = parse_hub_name(text)
    assert (name.repo, name.revision, name.subfolder) == expected


@pytest.mark.parametrize("text", ["org", "a/b/c", "./model", "org/na me", "org/", "@main", "org/name@", "models/x/"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such file or folder\.\nMODEL is a folder, a"):
        open_files(text)


def test_pages_of_other_sites_are_no_models() -> None:
    with pytest.raises(CheckpointError, match=r"example\.org is not the Hub"):
        open_files("https://example.org/org/name")


def test_a_path_wins_over_a_name(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert not inspect_checkpoint(NAME).checkpoint.origin.on_hub and not hub.log
    with pytest.raises(OptionError, match="is a path here"):
        inspect_checkpoint(NAME, revision="main")
    upload(hub, tmp_path / "org" / "model")
    assert inspect_checkpoint(f"hf://{NAME}").checkpoint.origin.on_hub


def test_options_that_contradict_each_other(hub: HubServer) -> None:
    for options, message in (
        ({"revision": "b"}, "names a"),
        ({"revision": "a", "subfolder": "../x"}, "must lie inside"),
        ({"revision": "a", "connections": 0}, "at least 1"),
    ):
        with pytest.raises(OptionError, match=message):
            open_files(f"{NAME}@a", **options)  # type: ignore[arg-type]


def test_revisions_are_pinned(hub: HubServer, tmp_path: Path) -> None:
    repo = upload(hub, llama(tmp_path / "model"), branches=("v1",))
    assert inspect_checkpoint(f"{NAME}@v1").checkpoint.origin.revision == repo.commit
    resolved = [asked.path for asked in hub.log if asked.method == "HEAD"]
    assert resolved and all(f"/resolve/{repo.commit}/" in path for path in resolved)
    with pytest.raises(CheckpointError, match=r"org/model: no revision 'v2'\.\nBranches and commits: .*commits/main"):
        inspect_checkpoint(NAME, revision="v2")


def test_a_pipeline_of_diffusers_takes_a_subfolder(hub: HubServer, tmp_path: Path) -> None:
    component = llama(tmp_path / "pipe" / "transformer")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    upload(hub, tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"lie in subfolders: transformer\.\nChoose one with --subfolder"):
        inspect_checkpoint(NAME)
    with pytest.raises(CheckpointError, match="it has transformer"):
        inspect_checkpoint(NAME, subfolder="unet")
    result = initialize(NAME, 4, subfolder="transformer", output=tmp_path / "out")
    assert result.operation.checkpoint.location == f"{NAME}/transformer"
    near = initialize(tmp_path / "pipe", 4, subfolder="transformer", output=tmp_path / "near")
    assert (
        weights(result.folder)
        == weights(near.folder)
        == weights(initialize(component, 4, output=tmp_path / "c").folder)
    )
    assert verify(tmp_path / "out", source=NAME, subfolder="transformer").holds


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"x"}, r"no safetensors weights, only pytorch_model\.bin\.\nMany such .*refs/pr/1"),
        ({"model.Q4_K_M.gguf": b"GGUF"}, r"only model\.Q4_K_M\.gguf\.\nThese are made for inference"),
        ({"notes.md": b""}, r"not a checkpoint"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "m-1.safetensors"}}'},
         r"names shards that are not there: 'm-1\.safetensors'"),
        ({"model.safetensors": b"\xff" * 64}, "the header claims"),
        ({"model.safetensors": b"\x10\0\0\0\0\0\0\0{}"}, "the header claims 16 bytes"),
    ],
)  # fmt: skip
def test_repositories_without_usable_weights(hub: HubServer, files: dict[str, bytes], message: str) -> None:
    hub.repos[NAME] = Repo({"config.json": b"{}", **files})
    with pytest.raises(CheckpointError, match=message):
        inspect_checkpoint(NAME)


# ---- credentials


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, llama(tmp_path / "model"), private=True, gated=True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    analyze(NAME, output=tmp_path / "out", rank=4)
    assert {asked.token for asked in hub.log if asked.host == "hub" and "agent" not in asked.path} == {TOKEN}
    assert {asked.token for asked in hub.log if in_storage(asked)} == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gated": True}, r"access to this model must be granted\.\nAsk for it at http://.*/org/model, then log in"),
        ({"private": True}, r"no such model at http://.*, or it is private\.\nCheck the spelling; .*`hf auth login`"),
    ],
)
def test_models_that_need_access(hub: HubServer, options: dict[str, bool], message: str, tmp_path: Path) -> None:
    upload(hub, llama(tmp_path / "model"), **options)
    with pytest.raises(CheckpointError, match=message):
        inspect_checkpoint(NAME)


# ---- offline


def test_offline_reads_the_cache_and_says_what_is_missing(hub: HubServer, tmp_path: Path) -> None:
    commit = upload(hub, llama(tmp_path / "model")).commit
    snapshot = download(hub)
    hub.log.clear()
    done = cli("inspect", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and commit in done.stdout and "read from the local cache" in done.stderr
    next(snapshot.glob("model-00002*")).unlink()
    done = cli("inspect", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "names shards that are not there" in done.stderr
    done = cli("inspect", "org/other", HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "not in the local cache, and offline mode is on" in done.stderr
    assert "Traceback" not in done.stderr and not hub.log


def test_a_hub_that_is_down_is_replaced_by_the_cache(hub: HubServer, tmp_path: Path) -> None:
    commit = upload(hub, llama(tmp_path / "model")).commit
    download(hub)
    hub.fault_of = always(anything, Fault(status=503))
    found = inspect_checkpoint(NAME)
    assert found.checkpoint.origin.revision == commit
    assert any("read from the local cache" in text and "503" in text for text in found.plan.notices)


def test_no_connection_at_all(hub: HubServer) -> None:
    done = cli("inspect", NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "no answer from http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


# ---- interruptions


def test_a_resumed_run_reads_nothing_twice(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_room, "_SYNC_EVERY", 1)
    upload(hub, llama(tmp_path / "model"))
    for verb, options in ((analyze, {"rank": 4}), (initialize, {"rank": 4})):
        whole = verb(NAME, output=tmp_path / "whole", **options)  # type: ignore[operator]
        for after in (1, 5):
            hub.log.clear()
            with pytest.raises(KeyboardInterrupt):
                verb(NAME, output=tmp_path / "out", overwrite=True, progress=Interrupting(after), **options)  # type: ignore[operator]
            join_workers()
            journal = tmp_path / "out.partial" / "journal.jsonl"
            done = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
            hub.log.clear()
            verb(NAME, output=tmp_path / "out", resume=True, overwrite=True, **options)  # type: ignore[operator]
            asked = [entry.span for entry in hub.log if in_storage(entry)]
            kept = [place for step in done for place in places(step, tmp_path / "model")]
            assert len(kept) >= after and not set(kept) & set(asked)
        assert weights(tmp_path / "out").keys() == weights(whole.folder).keys()
        for folder in ("out", "whole"):
            subprocess.run(["rm", "-r", tmp_path / folder], check=True)


def places(step: dict[str, Any], model: Path) -> list[str]:
    """The Ranges that read the tensors of a journal entry."""
    labels = step.get("records", {}).keys() or {
        f"{r['role']} {r['layer']}" for r in step.get("module", {}).get("records", ())
    }
    targets = inspect_checkpoint(model).plan.targets
    return [f"bytes={target.stored.start}-{target.stored.stop - 1}" for target in targets if target.label in labels]


def test_ctrl_c_does_not_wait_for_the_network(hub: HubServer, tmp_path: Path) -> None:
    """By the order of events: the process has ended while the server still holds the answers that it waits for."""
    model = write_checkpoint(tmp_path / "model", llama_tensors(layers=4, hidden=256, kv=128))
    upload(hub, model)
    late = {str(target.stored.start) for target in inspect_checkpoint(model).plan.targets if target.layer >= 2}
    gate, journal = Gate(), tmp_path / "out.partial" / "journal.jsonl"

    def hold(asked: Asked) -> Fault | None:
        start = str(asked.span).removeprefix("bytes=").split("-")[0]
        return Fault(cut=100, gate=gate) if in_storage(asked) and start in late else None

    hub.fault_of = hold
    command = [sys.executable, "-m", "ailora_tools", "init", NAME, "--rank", "4", "-o", str(tmp_path / "out")]
    child = start(command, HF_HUB_DOWNLOAD_TIMEOUT=str(10 * SAFETY))

    def waits_for_held_answers() -> bool:
        """Both layers that came are in the journal (torch is imported by then), the other two are held."""
        stored = journal.read_text().count('{"module": {') if journal.exists() else 0
        return child.poll() is not None or (stored >= 4 and gate.holding == 2)

    until(waits_for_held_answers)
    errors = press_ctrl_c(child)
    assert gate.holding == 2, errors
    gate.open()
    assert child.returncode == 130 and "--resume" in errors and "Traceback" not in errors
    hub.fault_of = None
    assert run("init", NAME, "--rank", 4, "-o", tmp_path / "out", "--resume").exit_code == 0
    assert verify(tmp_path / "out", source=NAME).holds


# ---- what is said


def test_the_terminal_says_what_is_read(hub: HubServer, tmp_path: Path) -> None:
    commit = upload(hub, minilm(tmp_path / "model")).commit
    done = run("inspect", NAME)
    assert f"{NAME} at {commit}" in done.stdout and "To read: 7.08 MB of 90.9 MB (7.8%)" in done.stdout
    assert "about 0.57 s at 100 Mbit/s" in done.stdout
    assert "in 5 requests." in done.stderr
    done = run("analyze", NAME, "-o", tmp_path / "out")
    assert "note: reading 7.08 MB of 90.9 MB over the network" in done.stderr
    assert "Read 7.15 MB in 11 requests." in done.stderr
    done = run("inspect", NAME, "--json")
    document = json.loads(done.stdout)
    assert document["traffic"]["requests"] == 5 and document["revision"] == commit


def test_signatures_stay_out_of_messages(hub: HubServer, tmp_path: Path) -> None:
    upload(hub, llama(tmp_path / "model"))
    hub.fault_of = always(in_storage, Fault(status=500))
    with pytest.raises(AiloraError) as caught:
        inspect_checkpoint(NAME)
    assert "signature" not in str(caught.value) and "status 500" in str(caught.value)


def test_bfloat16_and_odd_offsets_survive_being_read_together(hub: HubServer, tmp_path: Path) -> None:
    """Two neighbours of one run, the second at an odd byte."""
    tensors = llama_tensors(layers=1)
    flags = {"a.flag": torch.zeros(3, dtype=torch.uint8)}
    folder = write_checkpoint(tmp_path / "model", {})
    save_file({**flags, **tensors}, folder / "model.safetensors")
    upload(hub, folder)
    near, far = (analyze(source, output=tmp_path / out, rank=2).document["matrices"]
                 for source, out in ((folder, "a"), (NAME, "b")))  # fmt: skip
    assert near == far
