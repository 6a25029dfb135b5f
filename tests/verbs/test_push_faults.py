"""A Hub that refuses, fails or is changed by others: one message, nothing changed here, and a later run goes on."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants
from huggingface_hub.utils import _http
from kit.checkpoints import tree
from kit.hub_server import Asked, Fault, HubServer, Repo, always, once
from kit.shared import BASE, PLAIN, SOURCE, Made

from ailora_tools import push
from ailora_tools.checkpoint import upload
from ailora_tools.checkpoint.transfer import Backoff
from ailora_tools.cli.group import main
from ailora_tools.errors import AiloraError

pytestmark = pytest.mark.usefixtures("source_on_hub")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts, the client's neither."""
    monkeypatch.setattr(upload, "Backoff", lambda: Backoff(tries=3, first=0.0, longest=0.0))
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)


def run(folder: Path, *options: str) -> Result:
    """The command line; whatever becomes of it, nothing here is changed."""
    before = tree(folder.parent)
    result = CliRunner().invoke(main, ["push", str(folder), BASE, *options])
    assert tree(folder.parent) == before and "Traceback" not in result.output
    return result


def refused(folder: Path, *options: str, code: int = 1) -> str:
    """What it says, in one message with a way out."""
    result = run(folder, *options)
    assert result.exit_code == code, result.output
    assert result.stdout == "" and result.stderr.count("error: ") == 1
    said = result.stderr[result.stderr.index("error: ") :]
    assert len(said.splitlines()) == 2, said
    assert "://" not in said.replace(constants.ENDPOINT, "").replace("https://status.huggingface.co", "")
    return said


def at(part: str, method: str = "POST") -> Callable[[Asked], bool]:
    return lambda asked: asked.method == method and part in asked.path


def said(message: str, status: int, **headers: str) -> Fault:
    return Fault(status=status, headers={"X-Error-Message": message, **headers}, body=b"{}")


CREATE, COMMIT, LFS, PREUPLOAD = at("/repos/create"), at("/commit/"), at("objects/batch"), at("/preupload/")
STORE, COPY, LOOK = at("/upload/", "PUT"), at("lfs-files/duplicate"), at("/api/models/me/start", "GET")

REFUSED: dict[str, tuple[Callable[[Asked], bool], Fault, str]] = {
    "401 on the token": (CREATE, said("Invalid credentials in Authorization header", 401), "(401).*hf auth login"),
    "403 on the namespace": (CREATE, said("You don't have the rights to create a model", 403), "(403).*hf auth login"),
    "403 on the commit": (COMMIT, said("Forbidden: pass `create_pr=1`", 403), "(403).*--create-pr"),
    "403 before the upload": (PREUPLOAD, said("no write access", 403), "no write access.*--create-pr"),
    "404 of a repository that vanished": (COMMIT, said("Repository not found", 404, **{"X-Error-Code": "RepoNotFound"}),
                                          "not there, or not for this token.*Check the name"),
    "409 of a repository made meanwhile": (CREATE, said("You already created this model repo", 409),
                                           "already created.*(409).*run the command again"),
    "409 on the commit": (COMMIT, said("Another commit is in progress", 409), "in progress.*(409).*run the"),
    "412, somebody else committed": (COMMIT, said("A commit has happened since", 412), "(412).*Somebody else"),
    "413, too large": (PREUPLOAD, said("Payload too large", 413), "no room for it on the Hub.*Free some storage"),
    "402, a quota": (CREATE, said("Payment required", 402), "no room for it on the Hub"),
    "403 of a quota": (LFS, said("Private repository storage limit reached", 403), "no room.*storage limit reached"),
    "an error of one file of a batch": (
        LFS, Fault(status=200, body=json.dumps({"objects": [{"oid": "x", "size": 1, "error": {
            "code": 422, "message": "You have exceeded your quota"}}]}).encode()), "no room.*exceeded your quota"),
    "429 for long": (CREATE, Fault(status=429, headers={"Retry-After": "7200"}), "wait 7200 s.*Run the same command"),
    "5xx on end": (COMMIT, Fault(status=503), "status 503, 3 times in a row.*Run the same command again"),
    "5xx of the storage on end": (STORE, Fault(status=500), "status 500, 3 times in a row.*not sent again"),
    "uploads that are cut on end": (STORE, Fault(cut=100), "3 times in a row.*not sent again"),
    "400 on the commit": (COMMIT, said("Your push was rejected", 400), "push was rejected.*(400)"),
    "418": (COMMIT, said("I am a teapot", 418), "teapot.*(418)"),
    "an answer that is not the Hub's": (COMMIT, Fault(status=200, body=b"<html>"), "cannot be read.*HF_ENDPOINT"),
    "a listing that is not the Hub's": (LOOK, Fault(status=200, body=b"[1]"), "cannot be read.*HF_ENDPOINT"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_message_and_a_later_run_goes_on(case: str, made: Made, hub: HubServer) -> None:
    match, fault, words = REFUSED[case]
    hub.fault_of = always(match, fault)
    message = " ".join(refused(made.local).splitlines())
    assert re.search(re.sub(r"\((\d+)\)", r"\\(\1\\)", words), message), message
    hub.fault_of = None
    assert run(made.local).exit_code == 0
    assert tree(made.local).keys() <= hub.repos[BASE].files.keys()


SURVIVED: dict[str, tuple[Callable[[Asked], bool], list[Fault]]] = {
    "5xx at making the repository": (CREATE, [Fault(status=500), Fault(status=502)]),
    "5xx at the commit": (COMMIT, [Fault(status=503)]),
    "429 at the commit": (COMMIT, [Fault(status=429, headers={"Retry-After": "0"})]),
    "5xx of the storage": (STORE, [Fault(status=500), Fault(status=503)]),
    "an upload that is cut": (STORE, [Fault(cut=5000)]),
    "a request that is cut": (COMMIT, [Fault(cut=100)]),
    "5xx at the copies": (COPY, [Fault(status=500)]),
    "403 at the copies": (COPY, [said("not allowed", 403)]),
    "a source that vanishes": (
        at("org/model/paths-info"),
        [said("Repository not found", 404, **{"X-Error-Code": "RepoNotFound"})],
    ),
    "a file of the source that vanishes": (
        at("org/model/paths-info"),
        [Fault(status=200, body=b"[]", headers={"Content-Type": "application/json"})],
    ),
}


@pytest.mark.parametrize("case", SURVIVED)
def test_survived_without_a_word_of_the_client(
    case: str, made: Made, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    match, faults = SURVIVED[case]
    logged: list[logging.LogRecord] = []
    listener = logging.Handler()
    monkeypatch.setattr(listener, "emit", logged.append)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [listener])
    hub.fault_of = once(match, *faults)
    assert run(made.start).exit_code == 0
    assert logged == [], "what it logs has addresses, which may be signed"
    assert tree(made.start).keys() <= hub.repos[BASE].files.keys()


def test_without_a_login_nothing_is_asked(made: Made, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "nobody is logged in" in refused(made.local) and hub.log == []


def test_offline_nothing_is_asked(made: Made, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is on" in refused(made.local) and hub.log == []


def test_a_wrong_token_is_told(made: Made, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf auth login" in refused(made.local)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(made: Made, hub: HubServer) -> None:
    real, lost = hub.note, []

    def lose(asked: Asked) -> Fault | None:
        found = real(asked)
        if COMMIT(asked) and not lost:
            lost.append(asked)
            return Fault(lost=True)
        return found

    hub.note = lose  # type: ignore[method-assign]
    try:
        done = push(made.plain, PLAIN)
    finally:
        hub.note = real  # type: ignore[method-assign]
    assert lost and done.commit == hub.repos[PLAIN].commit and len(hub.repos[PLAIN].past) == 1


def test_a_push_in_between_is_a_race_and_nothing_of_it_is_lost(made: Made, hub: HubServer) -> None:
    hub.repos[BASE] = Repo({".gitattributes": b""}, private=True)

    def somebody(asked: Asked) -> None:
        if PREUPLOAD(asked) and "theirs" not in hub.repos[BASE].files:
            hub.repos[BASE].advance("main", {"theirs": b"1"})

    hub.fault_of = somebody
    assert "Somebody else has committed" in refused(made.plain)
    assert hub.repos[BASE].files == {"theirs": b"1"}


def test_a_commit_of_others_is_not_taken_for_one_whose_answer_was_lost(made: Made, hub: HubServer) -> None:
    def somebody(asked: Asked) -> Fault | None:
        if not COMMIT(asked) or "theirs" in hub.repos[BASE].files:
            return None
        hub.repos[BASE].advance("main", {"theirs": b"1"})
        return Fault(status=503)

    hub.fault_of = somebody
    assert "somebody else has committed" in refused(made.start)
    assert hub.repos[BASE].files == {"theirs": b"1"}


def test_what_has_arrived_is_not_sent_again(made: Made, hub: HubServer) -> None:
    shards = sorted(name for name in tree(made.local) if name.endswith(".safetensors") and "/" not in name)
    arrived: list[Asked] = []

    def third(asked: Asked) -> Fault | None:
        if STORE(asked):
            arrived.append(asked)
        return Fault(status=500) if STORE(asked) and len(arrived) > 2 else None

    hub.fault_of = third
    assert "status 500" in refused(made.local)
    before = hub.count("storage", "PUT")
    hub.fault_of = None
    assert run(made.local).exit_code == 0
    assert hub.count("storage", "PUT") - before == len(shards) + 1 - 2, "all but the first two, and the adapter"


def test_a_base_without_its_adapter_gets_it_later(made: Made, hub: HubServer) -> None:
    commits: list[Asked] = []

    def second(asked: Asked) -> Fault | None:
        if COMMIT(asked):
            commits.append(asked)
        return Fault(status=500) if COMMIT(asked) and len(commits) > 1 else None

    hub.fault_of = second
    assert "status 500" in refused(made.local)
    base = hub.repos[BASE].commit
    assert "config.json" in hub.repos[BASE].files and "ailora.json" not in hub.repos[BASE].files
    hub.fault_of = None
    done = push(made.local, BASE)
    late = {file.name for file in done.files if file.how != "unchanged"}
    assert done.base_commit == base and late == {name for name in tree(made.local) if name.startswith("ailora")}


def test_other_bytes_on_the_hub_are_told(made: Made, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that keeps something else under the same name."""
    commit = Repo.advance

    def spoiled(self: Repo, revision: str, files: dict[str, bytes]) -> str:
        return commit(self, revision, {**files, "config.json": b"{ }"})

    monkeypatch.setattr(Repo, "advance", spoiled)
    assert "config.json arrived as other bytes" in refused(made.merged, "--gated-ok", code=3)


def test_a_lost_answer_about_a_pull_request_is_told(made: Made, hub: HubServer) -> None:
    hub.repos[BASE] = Repo({".gitattributes": b""}, private=True)
    hub.fault_of = always(COMMIT, Fault(status=502))
    assert "may be open or not" in refused(made.plain, "--create-pr")
    del hub.repos[BASE]
    assert "no pull request can be opened" in refused(made.plain, "--create-pr")


def test_a_card_with_broken_front_matter_is_refused_before_anything_is_sent(
    made: Made, hub: HubServer, tmp_path: Path
) -> None:
    folder = shutil.copytree(made.plain, tmp_path / "plain")
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    result = json.loads((folder / "ailora-result.json").read_text())
    (folder / "ailora-result.json").write_text(json.dumps({**result, "files": sorted({*result["files"], "README.md"})}))
    assert "Repair the front matter" in refused(folder)


def test_a_slow_hub_is_waited_for(made: Made, hub: HubServer) -> None:
    hub.bandwidth, hub.latency = 1e6, 0.01
    assert run(made.plain).exit_code == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [("me", "no such file or folder"), ("me/x@main", "without a revision"), ("me/--x", "check the spelling")],
)
def test_what_is_no_repository(name: str, words: str, made: Made, hub: HubServer) -> None:
    with pytest.raises(AiloraError, match=words):
        push(made.plain, name)
    assert hub.log == []


def test_a_gated_source_is_asked_about_on_a_terminal_alone(made: Made, hub: HubServer) -> None:
    hub.repos[SOURCE].gated = "manual"
    assert "--gated-ok" in refused(made.start)
    assert run(made.start, "--gated-ok").exit_code == 0
