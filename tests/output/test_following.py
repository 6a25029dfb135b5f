"""The hash of a shard that is still being made: it follows what is final, whatever the order in which that comes."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit.waiting import SAFETY, until

from ailora_tools.output.following import Following
from ailora_tools.output.layout import ShardLayout
from ailora_tools.output.spans import create, write_span

SPANS = {"q": (40, 70), "v": (70, 90), "none": (90, 90), "last": (150, 200)}
LAYOUT = ShardLayout(200, b"head" * 5, ((1000, 1020, 20), (2000, 2060, 90)), SPANS)
WHOLE = bytes(random.Random(0).randbytes(180))


@pytest.mark.parametrize("seed", range(12))
def test_the_hash_is_that_of_the_finished_file_in_any_order(seed: int, tmp_path: Path) -> None:
    path, order = tmp_path / "shard", random.Random(seed)
    create(path, LAYOUT.size, LAYOUT.header)
    whole, steps = LAYOUT.header + WHOLE, [7, 20, 41, 80]
    events: list[int | str] = list(SPANS)
    order.shuffle(events)
    for _ in steps:
        events.insert(order.randint(0, len(events)), -1)
    with ThreadPoolExecutor(2) as pool:
        shard = Following(path, LAYOUT, pool, lambda: False)
        for left, event in zip(reversed(range(len(events))), events, strict=True):
            if isinstance(event, str):
                start, stop = SPANS[event]
                write_span(path, start, whole[start:stop])
                shard.tell(tensor=event)
            else:
                done = steps.pop(0)
                write_span(path, 20, whole[20 : 20 + min(done, 20)])
                write_span(path, 90, whole[90 : 90 + max(0, done - 20)])
                shard.tell(copied=done)
            assert not left or not shard.sealed.done()
        assert shard.sealed.result(SAFETY) == hashlib.sha256(whole).hexdigest()
    assert path.read_bytes() == whole


def test_it_does_not_wait_for_the_last_tensor_to_begin(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    create(path, LAYOUT.size, LAYOUT.header)
    with ThreadPoolExecutor(1) as pool:
        shard = Following(path, LAYOUT, pool, lambda: False)
        shard.tell(copied=80)
        for name in ("q", "v", "none"):
            shard.tell(tensor=name)
        until(lambda: shard._hashed == 150)
        assert not shard.sealed.done()


def test_what_cannot_be_copied_or_read_is_an_error_and_no_wait(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        shard = Following(tmp_path / "absent", LAYOUT, pool, lambda: False)
        shard.tell(copied=80)
        assert isinstance(shard.sealed.exception(SAFETY), FileNotFoundError)
        other = Following(tmp_path / "absent", LAYOUT, pool, lambda: False)
        other.fail(OSError("no room"))
        other.fail(OSError("again"))
        assert str(other.sealed.exception(SAFETY)) == "no room"


def test_without_a_wish_for_it_nothing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    create(path, LAYOUT.size, LAYOUT.header)
    with ThreadPoolExecutor(1) as pool:
        shard = Following(path, LAYOUT, pool, lambda: False, hashed=False)
        shard.tell(copied=80)
        for name in SPANS:
            shard.tell(tensor=name)
        assert shard.sealed.result(SAFETY) == ""
