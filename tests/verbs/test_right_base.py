"""Which of the two bases an adapter is for, in every state of the ailora.json that tells it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.adapters import prepare
from kit.checkpoints import tree
from kit.families import build
from kit.hub_server import HubServer, Repo
from kit.permissions import without_privileges

from ailora_tools import analyze, convert, initialize, merge, relink, verify
from ailora_tools.errors import TargetError
from ailora_tools.output.manifest import SCHEMA

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, init of it, trained from that, and plain, which `convert` made of it."""
    folder = tmp_path_factory.mktemp("life")
    trained, _ = prepare("llama", folder)
    convert(trained, folder / "init", folder / "plain")
    return folder


@pytest.fixture
def manifest(life: Path, tmp_path: Path) -> Iterator[Path]:
    """That of init, restored afterwards; adapters are told apart by the path of the folder, which must stay."""
    path = life / "init" / "ailora.json"
    shutil.copy(path, tmp_path / "kept.json")
    yield path
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    shutil.copy(tmp_path / "kept.json", path)


def of_schema(number: object) -> Damage:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "schema": number}))


def older(path: Path, number: int) -> None:
    """With no field but those that the first schema had."""
    body = json.loads(path.read_text())
    first = ("tool", "source", "settings", "base", "modules", "files", "notices", "sha256")
    path.write_text(json.dumps({"schema": number, **{name: body[name] for name in first}}))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("no-such-blob"))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


UNREADABLE: dict[str, Damage] = {
    "torn": lambda path: os.truncate(path, 700),
    "empty": lambda path: path.write_bytes(b""),
    "edited": lambda path: path.write_text(path.read_text().replace('"base": true', '"base": false')),
    "no object": lambda path: path.write_text("[1, 2]"),
    "newer": of_schema(SCHEMA + 1),
    "no number for a schema": of_schema("5"),
    "older, without its fields": lambda path: path.write_text('{"schema": 1}'),
    "a link to nothing": dangling,
    "a folder": a_folder,
}
CROSSED = [("model", "trained"), ("init", "plain"), ("init/model.safetensors", "plain")]
RIGHT = [("model", "plain"), ("init", "trained"), ("init/model.safetensors", "trained")]


@pytest.mark.parametrize("state", UNREADABLE)
@pytest.mark.parametrize(("base", "adapter"), CROSSED)
def test_what_cannot_be_told_is_not_merged(
    base: str, adapter: str, state: str, life: Path, manifest: Path, tmp_path: Path
) -> None:
    UNREADABLE[state](manifest)
    with pytest.raises(
        TargetError, match=r"ailora\.json.* no telling whether .* could count twice, or be missing"
    ) as told:
        merge(life / base, life / adapter, tmp_path / "merged")
    assert told.value.hint.endswith(f"ailora-tools relink {life / adapter} --base {life / base}")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("state", UNREADABLE)
def test_what_belongs_together_by_name_needs_no_manifest(
    state: str, life: Path, manifest: Path, tmp_path: Path
) -> None:
    UNREADABLE[state](manifest)
    for number, (base, adapter) in enumerate(RIGHT):
        merge(life / base, life / adapter, tmp_path / str(number))


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_every_schema_tells_the_two_apart(schema: int, life: Path, manifest: Path, tmp_path: Path) -> None:
    if schema < SCHEMA:
        older(manifest, schema)
    for number, (base, adapter) in enumerate(RIGHT):
        merge(life / base, life / adapter, tmp_path / str(number))
    for base, adapter in CROSSED:
        with pytest.raises(TargetError, match=r"would count twice|lacks what `init` moved"):
            merge(life / base, life / adapter, tmp_path / "wrong")


def test_the_way_out_leads_out(life: Path, manifest: Path, tmp_path: Path) -> None:
    """The adapter is for that base, whatever lies in the folder that it names."""
    shutil.copytree(life / "plain", tmp_path / "mine")
    relink(tmp_path / "mine", str(life / "init"))
    manifest.write_text("{")
    with pytest.raises(TargetError, match="no telling"):
        merge(life / "model", tmp_path / "mine", tmp_path / "merged")
    relink(tmp_path / "mine", str(life / "model"))
    merge(life / "model", tmp_path / "mine", tmp_path / "merged")


def open_to_all(*folders: Path) -> None:
    top = Path(tempfile.gettempdir())
    for folder in folders:
        above = [parent for parent in folder.parents if top in parent.parents]
        for path in (folder, *above, *folder.rglob("*")):
            path.chmod(0o755)


def test_a_manifest_that_may_not_be_read_is_not_taken_for_none(life: Path, manifest: Path, tmp_path: Path) -> None:
    open_to_all(life, tmp_path)
    manifest.chmod(0)
    with without_privileges(), pytest.raises(TargetError, match=r"ailora\.json: Permission denied.*no telling"):
        merge(life / "model", life / "trained", tmp_path / "merged")


def test_a_base_that_may_not_be_looked_at_is_told(life: Path, tmp_path: Path) -> None:
    """As often as not /root/... of another machine."""
    shutil.copytree(life / "plain", tmp_path / "mine")
    (tmp_path / "locked" / "base").mkdir(parents=True)
    relink(tmp_path / "mine", str(tmp_path / "locked" / "base"))
    open_to_all(life, tmp_path)
    (tmp_path / "locked").chmod(0)
    with without_privileges():
        found = verify(tmp_path / "mine", base=life / "model")
    checks = {check.name: check for check in found.checks}
    assert checks["base"].holds and "cannot be looked at here: if that is a residual base" in checks["base"].detail


def test_a_moved_start_knows_its_base_by_where_it_lies(life: Path, tmp_path: Path) -> None:
    shutil.copytree(life / "init", tmp_path / "moved")
    config = tmp_path / "moved/ailora_init/adapter_config.json"
    gone = {**json.loads(config.read_text()), "base_model_name_or_path": str(tmp_path / "gone")}
    config.write_text(json.dumps(gone))
    merge(tmp_path / "moved", tmp_path / "moved/ailora_init", tmp_path / "merged")
    with pytest.raises(TargetError, match="would count twice"):
        merge(life / "model", tmp_path / "moved/ailora_init", tmp_path / "wrong")


def test_a_residual_base_on_the_hub_is_one(life: Path, hub: HubServer, tmp_path: Path) -> None:
    hub.repos["org/residual"] = Repo(tree(life / "init"))
    with pytest.raises(TargetError, match=r"its residual base: it lacks what `init` moved"):
        merge("org/residual", life / "plain", tmp_path / "merged")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_start_is_not_taken_for_none(name: str, life: Path, tmp_path: Path) -> None:
    """What a trainer lost is seen by it."""
    shutil.copytree(life / "init", tmp_path / "init")
    shutil.copytree(life / "trained", tmp_path / "trained")
    relink(tmp_path / "trained", str(tmp_path / "init"))
    os.truncate(tmp_path / "init/ailora_init" / name, 100)
    with pytest.raises(TargetError, match="It is the start that what was trained is held against"):
        merge(tmp_path / "init", tmp_path / "trained", tmp_path / "merged")
    shutil.rmtree(tmp_path / "init/ailora_init")
    merge(tmp_path / "init", tmp_path / "trained", tmp_path / "merged")


def test_verify_says_so_too(life: Path, manifest: Path) -> None:
    manifest.write_text("{")
    checks = {check.name: check for check in verify(life / "trained", base=life / "model").checks}
    assert not checks["base"].holds and "no telling" in checks["base"].detail


def test_a_comparison_tells_what_is_not_training(life: Path, manifest: Path, tmp_path: Path) -> None:
    """Notices alone: the numbers are right for what is compared."""

    def told(base: str, adapter: Path) -> str:
        found = analyze(life / base, against=[adapter], rank=2, output=tmp_path / "out", overwrite=True).document
        return " ".join(found["notices"])

    assert "`init`" not in told("model", life / "plain") + told("init", life / "trained")
    assert "is a part of what is compared; compare with" in told("model", life / "trained")
    assert "is a part of what is compared; compare with" in told("model", life / "init/ailora_init")
    assert "in proportion to what is left there" in told("init", life / "plain")
    manifest.write_text("{")
    assert "no telling whether" in told("model", life / "trained")


def test_a_start_without_a_base_is_told_by_its_folder(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    start = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "out").adapter
    notices = analyze(tmp_path / "model", against=[start], rank=2, output=tmp_path / "report").document["notices"]
    assert any("the start is a part of what is compared; `convert`" in text for text in notices)
    with pytest.raises(TargetError, match=r"a start on the untouched original \(--no-base\)"):
        merge(tmp_path / "model", start, tmp_path / "merged")


def test_what_was_trained_beside_one_start_is_not_converted_with_another(life: Path, tmp_path: Path) -> None:
    """Half of their modules are the same, so that the numbers as a whole are alike."""
    other = initialize(life / "model", 2, method="milora", output=tmp_path / "other").folder
    with pytest.raises(
        TargetError, match=r"trained was trained on .*/init, the residual base of another start"
    ) as told:
        convert(life / "trained", other, tmp_path / "plain")
    assert told.value.hint == f"Give that folder: --init {life / 'init'}."
    assert not (tmp_path / "plain").exists()


def test_a_copy_of_the_start_is_as_good_as_the_start(life: Path, tmp_path: Path) -> None:
    shutil.copytree(life / "init", tmp_path / "copy")
    assert convert(life / "trained", tmp_path / "copy", tmp_path / "plain").modules
