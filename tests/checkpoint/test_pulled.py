"""Work that is pulled: every item once, no item before a thread is free for it, and one error for all."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from kit.waiting import SAFETY

from ailora_tools.checkpoint.pulled import Tell, disk_workers, pulled


def counted(count: int, taken: list[int]) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_item_is_done_once_and_what_it_tells_is_heard_here(workers: int) -> None:
    heard: list[tuple[int, threading.Thread]] = []

    def work(number: int, tell: Tell) -> int:
        tell(number)
        return number * number

    def hear(count: int) -> None:
        heard.append((count, threading.current_thread()))

    assert dict(pulled(iter(range(20)), work, workers, hear)) == {number: number**2 for number in range(20)}
    assert sorted(count for count, _ in heard) == list(range(20))
    assert {thread for _, thread in heard} == {threading.current_thread()}


def test_an_item_is_taken_when_a_thread_is_free_for_it() -> None:
    taken: list[int] = []
    go = threading.Semaphore(0)

    def work(number: int, tell: Tell) -> int:
        assert go.acquire(timeout=SAFETY)
        return number

    results = pulled(counted(9, taken), work, 2, lambda *_: None)
    for done in range(1, 4):
        go.release()
        next(results)
        assert len(taken) <= done + 2
    go.release(9)
    assert len(list(results)) == 6


def test_an_error_ends_the_others_and_is_raised() -> None:
    held, told = threading.Event(), []

    def work(number: int, tell: Tell) -> int:
        if number == 3:
            held.set()
            raise ValueError("three")
        held.wait(SAFETY)
        while True:  # until `tell` says that it is over
            told.append(number)
            tell(1)

    with pytest.raises(ValueError, match="three"):
        list(pulled([3, 1, 2, 4, 5], work, 2, lambda *_: None))
    assert set(told) <= {1, 2}


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(12), raising=False)
    assert disk_workers() == 8
    for name, value in {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert disk_workers() == 3
