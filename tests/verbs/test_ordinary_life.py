"""Names and paths as they occur: bytes that are not UTF-8, what may not be read, unknown users, files of others."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.hub_server import HubServer, Repo
from kit.permissions import without_privileges
from safetensors import safe_open

from ailora_tools import analyze, convert, export, initialize, merge, render_report, verify
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.cli.group import main
from ailora_tools.errors import AiloraError, CheckpointError, OutputError
from ailora_tools.output.manifest import read_manifest
from ailora_tools.verbs import verify_start as verify_room

LATIN_1 = os.fsdecode(b"R\xe9sum\xe9.txt")
NAMES = [os.fsdecode(b"mod\xe8le"), "two\nlines", "-x", "模型 é", "a'b\"c $(x)"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama_tensors())


def test_a_companion_whose_name_is_not_utf_8(model: Path, tmp_path: Path) -> None:
    (model / LATIN_1).write_text("hello")
    (model / "two\nlines").write_text("hello")
    out = initialize(model, 2, output=tmp_path / "out").folder
    assert (out / LATIN_1).read_text() == "hello" and LATIN_1 in read_manifest(out).files
    assert "R\\udce9sum\\udce9.txt" in (out / "ailora.json").read_text(encoding="utf-8")
    assert verify(out).holds
    (out / LATIN_1).write_text("other")
    assert not verify(out).holds, "and it is found again"
    assert (
        merge(model, convert(out / "ailora_init", out, tmp_path / "c").folder, tmp_path / "m").folder / LATIN_1
    ).exists()


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_checkpoint(Path("in", name), llama_tensors())
    out = initialize(model, 2, output=Path("out", name)).folder
    assert verify(out).holds and verify(out).source == str(model.resolve())
    report = analyze(model, rank=2, output=Path("report", name), against=[out / "ailora_init"][:0]).report
    assert render_report(report.parent) == report.absolute()
    plain = convert(out / "ailora_init", out, Path("plain", name)).folder
    assert json.loads((plain / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model.resolve())
    assert merge(model, plain, Path("merged", name)).folder.is_dir()
    copy = (out / "ailora_init" / ADAPTER_WEIGHTS).rename(
        tmp_path / ADAPTER_WEIGHTS
    )  # the library wants a path in UTF-8
    with safe_open(copy, "pt") as file:
        assert file.metadata()["rank"] == "2"


PATHS = {
    "unknown user": "~nosuchuser/x",
    "long": "a" * 300,
    "very long": "a" * 5000,
    "below a file": "FILE/x",
    "no entry": "CLOSED/x",
}
VERBS = {
    "inspect": ["inspect", "{}"],
    "init": ["init", "{}", "--rank", "2", "-o", "out"],
    "init -o": ["init", "model", "--rank", "2", "-o", "{}"],
    "init --ranks": ["init", "model", "--ranks", "{}", "-o", "out"],
    "bitfit -o": ["init", "model", "--method", "bitfit", "-o", "{}"],
    "analyze": ["analyze", "{}", "-o", "out"],
    "analyze -o": ["analyze", "model", "-o", "{}", "-r", "2"],
    "verify": ["verify", "{}"],
    "verify --source": ["verify", "start", "--source", "{}"],
    "convert": ["convert", "{}", "--init", "start", "-o", "out"],
    "convert --init": ["convert", "start/ailora_init", "--init", "{}", "-o", "out"],
    "convert -o": ["convert", "start/ailora_init", "--init", "start", "-o", "{}"],
    "merge": ["merge", "{}", "start/ailora_init", "-o", "out"],
    "merge ADAPTER": ["merge", "model", "{}", "-o", "out"],
    "merge -o": ["merge", "start", "start/ailora_init", "-o", "{}"],
    "export": ["export", "{}", "--to", "mlx", "-o", "out"],
    "export -o": ["export", "start", "--to", "mlx", "-o", "{}"],
    "report": ["report", "{}"],
}


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    """A model, what init made of it, a file and a folder that nobody may enter; open to every user."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tensors = llama_tensors() | {"model.norm.bias": torch.zeros(4)}
        initialize(write_checkpoint(place / "model", tensors), 2, output=place / "start")
        (place / "FILE").write_text("{}")
        (place / "CLOSED").mkdir(mode=0o700)
        place.chmod(0o777)
        yield place


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", PATHS)
def test_a_path_that_cannot_be_used(workshop: Path, verb: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message, exit code 1, nothing written; a closed folder is closed to root only where root acts as another."""
    monkeypatch.chdir(workshop)
    before = tree(workshop)
    (workshop / "CLOSED").chmod(0)
    with without_privileges():
        done = CliRunner().invoke(main, [part.replace("{}", PATHS[kind]) for part in VERBS[verb]])
    (workshop / "CLOSED").chmod(0o700)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) >= 2
    assert tree(workshop) == before and sorted(path.name for path in workshop.iterdir()) == [
        "CLOSED",
        "FILE",
        "model",
        "start",
    ]


@pytest.mark.parametrize("command", [["verify", ""], ["init", "model", "--rank", "2", "-o", ""], ["report", ""]])
def test_an_empty_path_is_wrong_usage(command: list[str]) -> None:
    assert CliRunner().invoke(main, command).exit_code == 2


def test_a_nul_is_named(model: Path) -> None:
    for call in (
        lambda: initialize("a\0b", 2), lambda: initialize(model, 2, output="a\0b"), lambda: verify("a\0b"),
        lambda: merge(model, "a\0b", "out"), lambda: render_report("a\0b"),
    ):  # fmt: skip
        with pytest.raises(AiloraError, match="null byte"):
            call()
    assert CliRunner().invoke(main, ["verify", "a\0b"]).exit_code == 2


def test_an_unreadable_file_is_found_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ailora_tools.verbs import initialize as room

    monkeypatch.setattr(room, "building", lambda *_, **__: pytest.fail("the work began"))
    tmp_path.chmod(0o777)
    (model / "model.safetensors").chmod(0o644)
    (model / "tokenizer.json").chmod(0)
    place = Path(tempfile.mkdtemp())
    model.rename(place / "model")
    place.chmod(0o755)
    with without_privileges(), pytest.raises(CheckpointError, match=r"tokenizer\.json: Permission denied"):
        initialize(place / "model", 2, output=place / "out")


def test_a_model_of_zeros_and_half_of_one(tmp_path: Path) -> None:
    for at, zero in enumerate(("qv", "q", "v")):
        tensors = {
            name: torch.zeros_like(W) if any(f".{role}_proj." in name for role in zero) else W
            for name, W in llama_tensors().items()
        }
        folder = write_checkpoint(tmp_path / f"model{at}", tensors, num_attention_heads=4, num_key_value_heads=2)
        found = analyze(
            folder, rank=2, output=tmp_path / f"report{at}", heads=True, suggest_ranks=2, against=[tmp_path / "model0"]
        )
        text = found.report.read_text()
        assert ("Every value is zero" in text) == (zero == "qv")


def test_report_replaces_its_own_pages_only(model: Path, tmp_path: Path) -> None:
    folder = analyze(model, rank=2, output=tmp_path / "report").folder
    page = tmp_path / "report.html"
    assert render_report(folder, page) == render_report(folder, page), "a page of ours may be replaced"
    for target in (model / "config.json", model):
        before = tree(model)
        with pytest.raises(OutputError, match="is not a report that ailora-tools wrote"):
            render_report(folder, target)
        assert tree(model) == before
    page.write_text("<html>mine</html>")
    with pytest.raises(OutputError):
        render_report(folder, page)
    with pytest.raises(OutputError, match="cannot write"):
        render_report(folder, tmp_path / "nowhere" / "report.html")
    assert not list(tmp_path.rglob("*.new"))


def test_nothing_is_written_into_the_cache_of_the_hub(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--m"
    for inside in ("blobs", "snapshots/0123", "refs"):
        (repository / inside).mkdir(parents=True)
        with pytest.raises(OutputError, match="Hugging Face cache"):
            initialize(model, 2, output=repository / inside / "out")


def test_exported_files_have_the_rights_of_all_others(model: Path, tmp_path: Path) -> None:
    start = initialize(model, 2, output=tmp_path / "start").folder
    folder = export(start, "mlx", tmp_path / "mlx").folder
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {stat.S_IMODE((start / "config.json").stat().st_mode)}


@pytest.mark.parametrize("location", ["hf://org/model", "org/model", "model", "//host/share/model", "https://x.org/m"])
def test_verify_asks_nobody_because_a_manifest_says_so(
    model: Path, tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the Hub, nor a share, nor a folder that happens to have that name here."""
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    out = initialize(model, 2, output=tmp_path / "out").folder
    manifest = read_manifest(out)
    source = {**manifest.source, "location": location, "revision": None}
    (out / "ailora.json").write_text(replace(manifest, source=source).to_json(), encoding="utf-8")
    monkeypatch.setattr(verify_room, "read_checkpoint", lambda *_, **__: pytest.fail("was asked"))
    assert verify(out).source is None


def test_a_download_is_found_again_offline(
    hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ailora_tools.checkpoint import remote

    hub.repos["org/model"] = Repo({path.name: path.read_bytes() for path in model.iterdir()})
    first = initialize("org/model", 2, output=tmp_path / "first", download=True)
    monkeypatch.setattr(remote, "is_offline", lambda: True)
    again = initialize("org/model", 2, output=tmp_path / "again")
    assert again.operation.checkpoint.origin == first.operation.checkpoint.origin
    with pytest.raises(AiloraError):
        initialize("org/model", 2, output=tmp_path / "none", revision="other")
