"""Links inside a model folder: what may be copied, and what stays where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.checkpoints import llama_tensors, tree, write_checkpoint

from ailora_tools import analyze, convert, initialize, merge
from ailora_tools.checkpoint.files import LocalFiles
from ailora_tools.errors import CheckpointError
from ailora_tools.progress import Silent


class Listening(Silent):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama_tensors())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "id_rsa"
    path.write_text("PRIVATE KEY")
    return path


def test_links_that_stay_inside_and_links_that_do_not(model: Path, secret: Path) -> None:
    (model / "docs").mkdir()
    (model / "docs" / "inside.txt").symlink_to("../tokenizer.json")
    (model / "docs" / "outside.txt").symlink_to("../../id_rsa")
    (model / "absolute.txt").symlink_to(secret)
    (model / "twice.txt").symlink_to("absolute.txt")
    (model / "proc.txt").symlink_to("/proc/self/environ")
    assert LocalFiles(model).strays() == sorted(["absolute.txt", "docs/outside.txt", "proc.txt", "twice.txt"])
    (model.parent / "alias").symlink_to(model)
    assert LocalFiles(model.parent / "alias").strays() == LocalFiles(model).strays(), "the folder itself may be a link"


def test_a_snapshot_of_the_cache_leads_to_its_own_blobs_only(tmp_path: Path, secret: Path) -> None:
    hub = tmp_path / "hub"
    for name in ("mine", "other"):
        (hub / f"models--org--{name}" / "blobs").mkdir(parents=True)
        (hub / f"models--org--{name}" / "blobs" / "abc").write_text("{}")
    snapshot = hub / "models--org--mine" / "snapshots" / "0123" / "transformer"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../../blobs/abc")
    (snapshot / "other.json").symlink_to("../../../../models--org--other/blobs/abc")
    (snapshot / "secret").symlink_to(secret)
    (hub / "models--org--mine" / "refs").mkdir()
    assert LocalFiles(snapshot).strays() == ["other.json", "secret"]


def test_what_is_made_to_be_published_holds_no_secrets(model: Path, secret: Path, tmp_path: Path) -> None:
    (model / "notes.txt").symlink_to(secret)
    (model / "vocab.txt").symlink_to("tokenizer.json")
    for name in (".env", ".gitattributes", ".netrc"):
        (model / name).write_text("TOKEN=hf_x")
    heard = Listening()
    out = initialize(model, 2, output=tmp_path / "out", progress=heard).folder
    made = convert(out / "ailora_init", out, tmp_path / "plain").folder
    merged = merge(model, made, tmp_path / "merged", progress=heard).folder
    for folder in (out, merged):
        assert (folder / "vocab.txt").read_text() == (model / "tokenizer.json").read_text()
        assert not (folder / "notes.txt").exists() and not list(folder.glob(".*"))
        assert b"PRIVATE KEY" not in b"".join(tree(folder).values())
    told = [text for text in heard.notices if "links out of the model's folder" in text]
    assert len(told) == 2 and all("notes.txt" in text for text in told)


def test_a_config_that_lies_elsewhere_is_refused_where_it_would_be_copied(model: Path, tmp_path: Path) -> None:
    (model / "config.json").rename(tmp_path / "config.json")
    (model / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: a link out of the model's folder"):
        initialize(model, 2, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert initialize(model, 2, output=tmp_path / "out", no_base=True).manifest is not None
    assert analyze(model, rank=2, output=tmp_path / "report").report.is_file()


def test_weights_may_lie_elsewhere(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(tmp_path / "weights")
    (model / "model.safetensors").symlink_to(tmp_path / "weights")
    out = initialize(model, 2, output=tmp_path / "out").folder
    assert not (out / "model.safetensors").is_symlink()
