"""What the tool writes goes to the Hub and is used from there: the real client, a Hub on the loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import snapshot_download
from kit.checkpoints import tree
from kit.hub_server import HubServer, Repo
from kit.shared import BASE, PLAIN, SOURCE, WORDS, Made, elsewhere
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ailora_tools import convert, initialize, merge, push, relink, verify
from ailora_tools.cli.group import main
from ailora_tools.errors import CheckpointError, OutputError, TargetError, VerificationError
from ailora_tools.verbs.push import GatedSourceError, Push

pytestmark = pytest.mark.usefixtures("source_on_hub")


def how(done: Push) -> dict[str, str]:
    return {file.name: file.how for file in done.files}


def sent(hub: HubServer) -> int:
    """Files that arrived in the storage."""
    return hub.count("storage", "PUT")


def test_the_round_trip_from_hub_to_hub(made: Made, hub: HubServer, tmp_path: Path) -> None:
    done = push(made.start, BASE)
    elsewhere(tmp_path / "elsewhere", hub)
    there = tmp_path / "elsewhere"
    original = AutoModelForCausalLM.from_pretrained(made.model).eval()
    with torch.no_grad():
        expected = original(WORDS).logits
    started, trained = torch.load(there / "start.pt"), torch.load(there / "trained.pt")
    assert torch.allclose(started, expected, atol=1e-5) and not torch.allclose(trained, expected, atol=1e-3)
    assert verify(there / "start").holds and done.base_commit != done.commit
    convert(there / "trained", there / "start", there / "plain")
    config = json.loads((there / "plain" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (SOURCE, hub.repos[SOURCE].commit)
    hub.repos["me/trained"] = Repo(tree(there / "trained"))
    convert("me/trained", BASE, tmp_path / "plain")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (there / "plain" / name).read_bytes()
    with pytest.raises(TargetError, match="in the base already"):
        merge(made.model, there / "trained", tmp_path / "twice")
    push(there / "plain", PLAIN)
    assert verify(BASE, source=SOURCE).holds
    assert verify(PLAIN, base=SOURCE).holds and verify(PLAIN, init=BASE, trained="me/trained").holds
    with torch.no_grad():
        served = PeftModel.from_pretrained(original, PLAIN)(WORDS).logits
    assert torch.allclose(served, trained, atol=1e-5)


def test_what_the_source_has_is_copied_and_the_rest_uploaded(made: Made, hub: HubServer) -> None:
    done = push(made.start, BASE)
    touched = {record["file"] for record in json.loads((made.start / "ailora.json").read_text())["modules"]}
    for name, way in how(done).items():
        large = name.endswith(".safetensors") and "/" not in name
        assert way == ("copied" if large and name not in touched else "uploaded")
    assert sent(hub) == len(touched) + 1, "the touched shards and the adapter"
    assert hub.repos[BASE].private


def test_the_repository_holds_the_folder_and_names_itself(made: Made, hub: HubServer) -> None:
    before = tree(made.start)
    done = push(made.start, BASE)
    assert tree(made.start) == before
    files, config = hub.repos[BASE].files, "ailora_init/adapter_config.json"
    differ = {name for name, data in before.items() if files[name] != data}
    assert differ == {config, "ailora.json", "README.md", "ailora_init/README.md"} and files.keys() - before.keys() == {
        ".gitattributes"
    }
    found = json.loads(files[config])
    assert (found["base_model_name_or_path"], found["revision"]) == (BASE, done.base_commit)
    assert config not in hub.repos[BASE].at(str(done.base_commit))


def test_a_second_run_sends_nothing(made: Made, hub: HubServer) -> None:
    first, before = push(made.start, BASE), sent(hub)
    again = push(made.start, BASE)
    assert set(how(again).values()) == {"unchanged"} and sent(hub) == before
    assert (again.commit, again.base_commit) == (first.commit, first.base_commit)


def test_a_new_start_takes_the_place_of_the_old_one(made: Made, hub: HubServer, tmp_path: Path) -> None:
    push(made.local, BASE)
    hub.repos[BASE].files["ailora_init/old.json"] = b"{}"
    manifest = json.loads(hub.repos[BASE].files["ailora.json"])
    manifest["files"]["ailora_init/old.json"] = {"size": 2, "sha256": "0" * 64}
    hub.repos[BASE].files["ailora.json"] = json.dumps(manifest).encode()
    done = push(made.start, BASE)
    assert how(done)["ailora_init/old.json"] == "removed" and "ailora_init/old.json" not in hub.repos[BASE].files
    snapshot_download(BASE, local_dir=tmp_path / "snapshot")
    assert verify(tmp_path / "snapshot").holds


def test_a_source_that_is_a_path_is_uploaded_whole_and_no_path_is_told(
    made: Made, hub: HubServer, tmp_path: Path
) -> None:
    done = push(made.local, BASE)
    assert set(how(done).values()) == {"uploaded"}
    source = json.loads(hub.repos[BASE].files["ailora.json"])["source"]
    assert source["location"] == "model" and source["revision"] is None
    snapshot_download(BASE, local_dir=tmp_path / "snapshot")
    assert verify(tmp_path / "snapshot").holds


@pytest.mark.parametrize("region", ["another region", "not in Xet"])
def test_where_the_server_does_not_copy_all_is_uploaded(region: str, made: Made, hub: HubServer) -> None:
    hub.repos[SOURCE].region = "eu" if region == "another region" else "us"
    hub.repos[SOURCE].xet = region == "another region"
    assert set(how(push(made.start, BASE)).values()) == {"uploaded"}


def test_large_files_go_in_parts(made: Made, hub: HubServer) -> None:
    hub.part = 10_000
    push(made.local, BASE)
    shards = {name: data for name, data in tree(made.local).items() if name.endswith(".safetensors")}
    assert all(hub.repos[BASE].files[name] == data for name, data in shards.items())
    assert sent(hub) > len(shards)


@pytest.mark.parametrize("kind", ["plain", "merged", "two"])
def test_other_folders_are_one_commit_as_they_are(kind: str, made: Made, hub: HubServer, tmp_path: Path) -> None:
    folder = shutil.copytree(getattr(made, kind), tmp_path / kind)
    if kind == "two":
        relink(folder, f"{SOURCE}@v1")
    done = push(folder, BASE)
    same = {name for name, data in tree(folder).items() if hub.repos[BASE].files[name] == data}
    assert tree(folder).keys() - same <= {"ailora-result.json", "ailora.json", "README.md"}
    assert done.base_commit is None and hub.count("hub", "POST", file="main") >= 1
    if kind == "merged":
        assert "copied" in how(done).values()
    if kind == "two":
        snapshot_download(BASE, local_dir=tmp_path / "snapshot")
        assert verify(tmp_path / "snapshot").holds and verify(folder).holds


def test_an_adapter_for_a_path_is_refused_until_it_is_relinked(made: Made, hub: HubServer) -> None:
    with pytest.raises(OutputError, match="a path of this machine") as refused:
        push(made.two, BASE)
    assert "ailora-tools relink" in refused.value.hint and BASE not in hub.repos


def test_foreign_and_hidden_files_stay_here(made: Made, hub: HubServer, tmp_path: Path) -> None:
    folder = shutil.copytree(made.local, tmp_path / "start")
    for name in (".env", ".start.lock", "trained.bin", "start.partial/tree/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret")
    push(folder, BASE)
    assert hub.repos[BASE].files.keys() == tree(made.local).keys() | {".gitattributes"}


def test_a_dry_run_foresees_what_a_run_does(made: Made, hub: HubServer) -> None:
    foreseen = push(made.start, BASE, dry_run=True)
    assert BASE not in hub.repos and hub.count("hub", "PUT") == 0
    done = push(made.start, BASE)
    assert (foreseen.files, foreseen.commit) == (done.files, None)


def test_a_pull_request_has_both_commits_and_leaves_main_alone(made: Made, hub: HubServer, tmp_path: Path) -> None:
    hub.repos[BASE] = Repo({".gitattributes": b""}, private=True)
    before = hub.repos[BASE].commit
    done = push(made.start, BASE, create_pr=True)
    assert str(done.request).endswith("/discussions/1") and hub.repos[BASE].commit == before
    snapshot_download(BASE, revision="refs/pr/1", local_dir=tmp_path / "snapshot")
    assert verify(tmp_path / "snapshot").holds


@pytest.mark.parametrize("gated", ["auto", "manual", "not seen"])
def test_gated_weights_need_a_word(gated: str, made: Made, hub: HubServer) -> None:
    hub.repos[SOURCE].gated = gated
    if gated == "not seen":
        del hub.repos[SOURCE]
    for folder in (made.start, made.merged):
        with pytest.raises(GatedSourceError, match="nearly all weights of org/model") as refused:
            push(folder, BASE)
        assert "--gated-ok" in refused.value.hint and BASE not in hub.repos
    assert push(made.start, BASE, gated_ok=True).commit
    assert push(made.plain, PLAIN).commit, "a difference holds few of them"


def test_nobody_sees_more_than_was_asked_for(made: Made, hub: HubServer) -> None:
    hub.repos[BASE] = Repo({".gitattributes": b""})
    with pytest.raises(OutputError, match="is public"):
        push(made.plain, BASE)
    assert push(made.plain, BASE, public=True).private is False
    assert push(made.plain, PLAIN).private is True and hub.repos[PLAIN].private


def test_what_is_somebody_else_s_is_kept(made: Made, hub: HubServer) -> None:
    hub.repos[BASE] = Repo({"config.json": b"{}", "plot.png": b"x"}, private=True)
    with pytest.raises(OutputError, match="holds other files, such as config") as refused:
        push(made.plain, BASE)
    assert "--force" in refused.value.hint
    assert how(push(made.plain, BASE, force=True))["config.json"] == "removed"
    assert "plot.png" in hub.repos[BASE].files and "config.json" not in hub.repos[BASE].files
    hub.repos[BASE].files["config.json"] = b"{}"
    with pytest.raises(OutputError, match="json would be loaded with what is pushed"):
        push(made.plain, BASE)


def test_another_kind_of_folder_needs_a_word(made: Made, hub: HubServer) -> None:
    push(made.local, BASE)
    with pytest.raises(OutputError, match="holds what `init` wrote"):
        push(made.plain, BASE)


@pytest.mark.parametrize("damage", ["torn", "cut", "missing", "link", "stranger"])
def test_a_folder_that_is_not_whole_is_refused(damage: str, made: Made, hub: HubServer, tmp_path: Path) -> None:
    folder = shutil.copytree(made.plain if damage == "cut" else made.local, tmp_path / "start")
    shard = next(folder.glob("*.safetensors"))
    if damage == "torn":
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "link":
        shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(tmp_path / "elsewhere")
    elif damage == "missing":
        shard.unlink()
    else:
        (folder / "ailora.json").unlink()
    with pytest.raises((VerificationError, CheckpointError)):
        push(folder, BASE)
    assert BASE not in hub.repos


def test_init_of_a_pushed_base_and_convert_with_it_need_no_path(made: Made, hub: HubServer, tmp_path: Path) -> None:
    push(made.start, BASE)
    again = initialize(BASE, rank=2, output=tmp_path / "again")
    assert again.manifest.source["location"] == f"hf://{BASE}"


@pytest.mark.parametrize("kind", ["start", "local", "plain", "merged"])
def test_no_path_of_this_machine_is_told_and_the_card_s_commands_fit(
    kind: str, made: Made, hub: HubServer, tmp_path: Path
) -> None:
    push(getattr(made, kind), BASE)
    files = hub.repos[BASE].files
    assert not [name for name, data in files.items() if str(made.model.parent).encode() in data]
    if kind in ("start", "local"):
        card = files["README.md"].decode()
        assert "`hf download me/start --local-dir start`" in card and '"start/ailora_init"' in card


def test_a_result_is_one_short_line_and_has_the_files_as_rows(made: Made, hub: HubServer) -> None:
    done = push(made.plain, BASE)
    assert repr(done).startswith("<Push of ") and len(repr(done)) < 300 and "<table" in done._repr_html_()
    frame = done.to_dataframe()
    assert set(frame["how"]) == {"uploaded"} and frame["nbytes"].sum() == done.nbytes("uploaded")


def test_the_command_line_says_the_same_as_python(made: Made, hub: HubServer) -> None:
    told = CliRunner().invoke(main, ["push", str(made.start), BASE, "--json"])
    found, again = json.loads(told.stdout), push(made.start, BASE).to_json()
    assert told.exit_code == 0 and found["bytes"]["copied"] > 0
    same = ("folder", "repository", "url", "private", "commit", "base_commit")
    assert {key: found[key] for key in same} == {key: again[key] for key in same}
    shown = CliRunner().invoke(main, ["push", str(made.start), BASE])
    assert shown.exit_code == 0 and f"me/start@{found['base_commit']}" in shown.stdout


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
def test_on_a_terminal_gated_weights_are_asked_about(
    answer: str, code: int, made: Made, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[SOURCE].gated = "manual"
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr("ailora_tools.cli.push.sys", SimpleNamespace(stdin=terminal, stderr=terminal))
    asked = CliRunner().invoke(main, ["push", str(made.start), BASE], input=answer)
    assert asked.exit_code == code and "Share them? [y/N]" in asked.stderr
    assert (BASE in hub.repos) == (code == 0)
