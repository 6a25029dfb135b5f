"""A Hub that fails: every fault is survived or told, and a wrong byte never comes through."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import pytest
from huggingface_hub import constants
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.hub_server import Asked, Fault, HubServer, Repo, always, in_storage, once, sometimes
from kit.waiting import SAFETY, Gate, until

from ailora_tools import analyze, inspect_checkpoint
from ailora_tools.checkpoint import remote
from ailora_tools.checkpoint.files import Files
from ailora_tools.checkpoint.source import open_files
from ailora_tools.checkpoint.transfer import (
    Backoff,
    ExhaustedError,
    Traffic,
    TransientError,
    persist,
    require_span,
    retry_after,
)
from ailora_tools.errors import CheckpointError

NAME, FILE = "org/model", "model.safetensors"
DATA = random.Random(0).randbytes(300_000)
SHORT = Backoff(first=0.01, longest=0.05)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "Backoff", lambda: SHORT)


@pytest.fixture
def files(hub: HubServer) -> Files:
    hub.repos[NAME] = Repo({FILE: DATA, "config.json": b'{"small": "file"}'})
    return open_files(NAME)


def retries(files: Files) -> int:
    assert files.traffic is not None
    return files.traffic.retries


def at_hub(asked: Asked) -> bool:
    return asked.host == "hub" and "/resolve/" in asked.path


def behind_the_header(asked: Asked) -> bool:
    return in_storage(asked) and not str(asked.span).startswith("bytes=0-")


SURVIVED: dict[str, tuple[Callable[[Asked], bool], list[Fault]]] = {
    "Range ignored": (in_storage, [Fault(ignore_range=True)]),
    "Content-Range of another span": (in_storage, [Fault(shift=7)]),
    "Content-Range that does not fit the body": (in_storage, [Fault(content_range="bytes 0-1/2")]),
    "Content-Range without a size": (in_storage, [Fault(content_range="bytes 1000-200999/*")]),
    "no Content-Range": (in_storage, [Fault(content_range="")]),
    "short body": (in_storage, [Fault(cut=1234)]),
    "empty body": (in_storage, [Fault(cut=0)]),
    "reset in mid-body": (in_storage, [Fault(cut=70_000, reset=True)]),
    "a burst of server errors": (in_storage, [Fault(status=500), Fault(status=502), Fault(status=503)]),
    "errors of the Hub itself": (at_hub, [Fault(status=500), Fault(status=504)]),
    "too many requests": (in_storage, [Fault(status=429)]),
    "too many requests to the Hub, wait": (at_hub, [Fault(status=429, headers={"Retry-After": "0"})]),
    "refused address": (in_storage, [Fault(status=403)]),
    "address gone": (in_storage, [Fault(status=404)]),
    "range refused": (in_storage, [Fault(status=416)]),
    "compressed": (in_storage, [Fault(headers={"Content-Encoding": "gzip"})]),
    "four in a row": (in_storage, [Fault(cut=9), Fault(status=503), Fault(reset=True, cut=0), Fault(shift=1)]),
}


@pytest.mark.parametrize("case", SURVIVED)
def test_survived(case: str, hub: HubServer, files: Files) -> None:
    match, faults = SURVIVED[case]
    hub.fault_of = once(match, *faults)
    assert files.read(FILE, 1000, 201_000) == DATA[1000:201_000]
    assert retries(files) == len(faults)


def test_a_stall_is_survived(hub: HubServer, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience of the client ends once; the second answer may take its time."""
    assert files.read(FILE, 0, 9) == DATA[:9]
    gate, stalled = Gate(), []

    def stall(asked: Asked) -> Fault | None:
        if stalled:
            return None
        stalled.append(asked)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", SAFETY)
        return Fault(cut=70_000, gate=gate)

    hub.fault_of = stall
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    assert files.read(FILE, 1000, 201_000) == DATA[1000:201_000]
    assert retries(files) >= 1  # more where the machine is so busy that the request itself comes late
    until(lambda: gate.holding == 1)
    gate.open()


def test_what_arrived_is_not_asked_for_again(hub: HubServer, files: Files) -> None:
    hub.fault_of = once(in_storage, Fault(cut=65_536, reset=False))
    assert files.read(FILE, 0, 200_000) == DATA[:200_000]
    assert [asked.span for asked in hub.log if in_storage(asked)] == ["bytes=0-199999", "bytes=65536-199999"]


def test_an_expired_address_is_resolved_anew_and_a_good_one_kept(hub: HubServer, files: Files) -> None:
    for low in (0, 100, 200):
        assert files.read(FILE, low, low + 100) == DATA[low : low + 100]
    assert hub.count("hub", "HEAD") == 1
    hub.expire_addresses()
    assert files.read(FILE, 5, 9) == DATA[5:9]
    assert hub.count("hub", "HEAD") == 2 and retries(files) == 1


def test_retry_after_is_obeyed(hub: HubServer, files: Files) -> None:
    hub.fault_of = once(in_storage, Fault(status=429, headers={"Retry-After": "1"}))
    before = time.monotonic()
    assert files.read(FILE, 0, 10) == DATA[:10]
    assert time.monotonic() - before >= 1


def test_a_wait_that_is_too_long_is_told_not_slept(hub: HubServer, files: Files) -> None:
    hub.fault_of = once(in_storage, Fault(status=429, headers={"Retry-After": "7200"}))
    with pytest.raises(CheckpointError, match=r"status 429; the server asks to wait 7200 s\.\nRun the same .*--resume"):
        files.read(FILE, 0, 10)


@pytest.mark.parametrize(
    ("match", "fault", "message"),
    [
        (in_storage, Fault(status=503), "storage answered with status 503, 6 times in a row"),
        (in_storage, Fault(ignore_range=True), "expected status 206 for a part of the file, got 200, 6 times"),
        (in_storage, Fault(shift=1), "expected Content-Range 'bytes 10-19/300000', got 'bytes 11-20/300000', 6 times"),
        (in_storage, Fault(cut=0), "(early|disconnected|closed|[Ii]ncomplete).*, 6 times in a row"),
        (in_storage, Fault(status=403), "expected status 206 for a part of the file, got 403, 6 times"),
        (at_hub, Fault(status=403), "the Hub refused with status 403"),
        (at_hub, Fault(status=401), "refused with status 401|or it is private"),
        (at_hub, Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}), "listed, but not there"),
        (at_hub, Fault(status=418), "the Hub refused with status 418"),
    ],
)
def test_given_up_with_a_reason(
    hub: HubServer, files: Files, match: Callable[[Asked], bool], fault: Fault, message: str
) -> None:
    hub.fault_of = always(match, fault)
    with pytest.raises(CheckpointError, match=message) as caught:
        files.read(FILE, 10, 20)
    assert caught.value.hint and "signature" not in str(caught.value)


CHANGED: dict[str, tuple[Callable[[Asked], bool], Fault, str]] = {
    "ETag at the Hub": (at_hub, Fault(headers={"X-Linked-ETag": '"other"'}), "its ETag was .* and now is other"),
    "commit": (at_hub, Fault(headers={"X-Repo-Commit": "f" * 40}), "its commit was .* and now is ffff"),
    "size": (at_hub, Fault(headers={"X-Linked-Size": "7"}), "its size was 300000 and now is 7"),
    "ETag of the storage": (in_storage, Fault(headers={"ETag": '"other"'}), "its ETag at .* and now is other"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_change_in_mid_run_is_an_error_and_never_a_mixture(case: str, hub: HubServer, files: Files) -> None:
    match, fault, message = CHANGED[case]
    assert files.read(FILE, 0, 10) == DATA[:10]
    hub.fault_of = always(match, fault)
    hub.expire_addresses()
    with pytest.raises(CheckpointError, match=message) as caught:
        files.read(FILE, 0, 10)
    assert "run the command again from the start" in caught.value.hint


def test_a_size_that_is_not_the_listed_one(hub: HubServer, files: Files) -> None:
    hub.repos[NAME].files[FILE] = DATA[:1000]
    with pytest.raises(CheckpointError, match="its size was 300000 and now is 1000"):
        files.read(FILE, 0, 10)


def test_redirects_to_other_hosts_carry_no_token(hub: HubServer, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage sends the client on to a third name, as regional storages do."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    elsewhere = hub.storage.replace("127.0.0.1", "localhost")

    def onward(asked: Asked) -> Fault | None:
        first = in_storage(asked) and "moved" not in asked.path
        return Fault(status=307, headers={"Location": f"{elsewhere}{asked.path}&moved=1"}) if first else None

    hub.fault_of = onward
    assert files.read(FILE, 3, 99) == DATA[3:99]
    assert hub.count("storage") == 2
    assert {asked.token for asked in hub.log if in_storage(asked)} == {None}
    assert {asked.token for asked in hub.log if at_hub(asked)} == {f"Bearer {hub.token}"}


@pytest.mark.parametrize("host", ["hub", "storage"])
def test_redirect_loops_end(hub: HubServer, files: Files, host: str) -> None:
    def loop(asked: Asked) -> Fault | None:
        here = asked.host == host and FILE in asked.path
        return Fault(status=302, headers={"Location": asked.path}) if here else None

    hub.fault_of = loop
    with pytest.raises(CheckpointError, match=r"(redirected more than 5 times|Exceeded 20 redirects|TooManyRedirects)"):
        files.read(FILE, 0, 10)


def test_a_renamed_repository_is_followed(hub: HubServer, files: Files) -> None:
    """The Hub answers with a relative redirect on its own host."""
    hub.repos["org/new"] = hub.repos[NAME]

    def renamed(asked: Asked) -> Fault | None:
        old = at_hub(asked) and f"/{NAME}/" in asked.path
        return Fault(status=307, headers={"Location": asked.path.replace(NAME, "org/new")}) if old else None

    hub.fault_of = renamed
    assert files.read(FILE, 0, 10) == DATA[:10]
    assert files.read("config.json", 0, 17) == b'{"small": "file"}'


def test_reads_at_a_time_are_bounded(hub: HubServer) -> None:
    hub.repos[NAME] = Repo({FILE: DATA})
    files, gate = open_files(NAME, connections=3), Gate()
    hub.fault_of = always(in_storage, Fault(gate=gate))
    right = []

    def read(low: int) -> None:
        right.append(files.read(FILE, low, low + 10) == DATA[low : low + 10])

    readers = [threading.Thread(target=read, args=(low,)) for low in range(0, 240, 10)]
    for reader in readers:
        reader.start()
    until(lambda: gate.holding == 3)
    time.sleep(0.2)  # in which a fourth would come
    assert gate.holding == 3 and hub.count("storage") == 3
    gate.open()
    for reader in readers:
        reader.join()
    assert right == 24 * [True]


def test_a_soak_of_random_faults_ends_with_the_right_bytes(hub: HubServer) -> None:
    hub.repos[NAME] = Repo({FILE: DATA})
    files, dice = open_files(NAME), random.Random(1)
    hub.fault_of = sometimes(
        in_storage, 0.1, 1,
        Fault(ignore_range=True), Fault(shift=3), Fault(cut=5), Fault(cut=50, reset=True), Fault(status=429),
        Fault(status=500), Fault(status=503), Fault(status=403), Fault(content_range="bytes 0-0/1"),
    )  # fmt: skip
    for _ in range(500):
        start = dice.randrange(len(DATA))
        stop = min(len(DATA), start + dice.randrange(1, 20_000))
        assert files.read(FILE, start, stop) == DATA[start:stop]
    assert 20 < retries(files) < 120


def test_a_whole_analysis_under_faults_is_the_one_without(hub: HubServer, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", llama_tensors(layers=6), shards=3)
    hub.repos[NAME] = Repo(tree(folder))
    good = analyze(NAME, output=tmp_path / "good").document
    faults = [Fault(cut=100), Fault(status=503), Fault(shift=2), Fault(status=403), Fault(cut=9, reset=True)]
    hub.fault_of = sometimes(in_storage, 0.2, 2, *faults)
    result = analyze(NAME, output=tmp_path / "bad")
    assert result.document["matrices"] == good["matrices"]
    assert result.traffic is not None and result.traffic.retries > 0


def test_a_lost_connection_leaves_what_can_be_resumed(hub: HubServer, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", llama_tensors())
    hub.repos[NAME] = Repo(tree(folder))
    inspect_checkpoint(NAME)
    hub.fault_of = always(behind_the_header, Fault(status=500))
    with pytest.raises(CheckpointError, match="status 500"):
        analyze(NAME, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists(), "what has come can be resumed, as the message says"
    hub.fault_of = None
    assert analyze(NAME, output=tmp_path / "out", resume=True).document["matrices"]


@pytest.mark.parametrize("connections", [1, 2])
def test_addresses_that_expire_under_many_readers_lock_nobody_out(hub: HubServer, connections: int) -> None:
    """More readers than connections, each of them refused every few requests, so that one may have to give up."""
    hub.repos[NAME] = Repo({FILE: DATA})
    files, right, wrong = open_files(NAME, connections=connections), [], []
    hub.fault_of = sometimes(in_storage, 0.3, 3, Fault(status=403))

    def read(low: int) -> None:
        for start in range(low, low + 2000, 100):
            with suppress(ExhaustedError):
                same = files.read(FILE, start, start + 50) == DATA[start : start + 50]
                (right if same else wrong).append(start)

    readers = [threading.Thread(target=read, args=(low,), daemon=True) for low in range(0, 24_000, 2000)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(SAFETY)
    assert not any(reader.is_alive() for reader in readers) and not wrong
    assert {start // 2000 for start in right} == set(range(12)), "a reader got nothing at all"


# ---- the parts


def test_backoff_grows_is_jittered_and_bounded() -> None:
    backoff = Backoff(first=1, longest=8)
    waits = [[backoff.seconds(attempt) for _ in range(50)] for attempt in range(6)]
    for attempt, drawn in enumerate(waits):
        top = min(8, 2**attempt)
        assert top / 2 <= min(drawn) < max(drawn) <= top
    assert 5 <= backoff.seconds(0, 5) <= 6


def test_persist_counts_waits_and_gives_up() -> None:
    slept: list[float] = []
    traffic = Traffic()

    def fail() -> None:
        raise TransientError("broken", 3.0)

    with pytest.raises(ExhaustedError, match="place: broken, 4 times in a row"):
        persist(fail, "place", Backoff(tries=4, first=0.1), traffic, slept.append)
    assert len(slept) == 3 and all(3 <= seconds <= 3.1 for seconds in slept) and traffic.retries == 3


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "17"}, 17),
        ({"retry-after": formatdate(0, usegmt=True)}, 0),
        ({"retry-after": "soon"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({"ratelimit": '"api";r=9;t=55'}, None),
    ],
)
def test_what_a_server_asks_to_wait(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after(headers) == expected


def test_a_server_may_ask_to_wait_until_a_date() -> None:
    before = time.time()
    asked = retry_after({"retry-after": formatdate(before + 100, usegmt=True)})
    assert asked is not None and 99 - (time.time() - before) <= asked <= 100, "dates have whole seconds"


def test_a_whole_file_may_come_with_200() -> None:
    require_span(200, {"content-length": "10"}, 0, 10, 10)
    for status, headers, start in ((200, {"content-length": "10"}, 1), (200, {"content-length": "9"}, 0), (204, {}, 0)):
        with pytest.raises(TransientError):
            require_span(status, headers, start, 10, 10)
