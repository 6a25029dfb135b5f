"""What every ranged read over HTTP needs, without HTTP: count it, check the answer, wait and try again."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TypeVar

from ..errors import CheckpointError

Result = TypeVar("Result")

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # another attempt may succeed


@dataclass
class Traffic:
    """What went over the network so far; `nbytes` are bytes of files, answers about files left out."""

    nbytes: int = 0
    requests: int = 0
    retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _taken: tuple[int, int, int] = field(default=(0, 0, 0), repr=False, compare=False)

    def count(self, nbytes: int = 0, requests: int = 0, retries: int = 0) -> None:
        """Add to the counts, from any thread."""
        with self._lock:
            self.nbytes += nbytes
            self.requests += requests
            self.retries += retries

    def take(self) -> list[int]:
        """Bytes, requests and retries since the last call, from any thread."""
        with self._lock:
            now = (self.nbytes, self.requests, self.retries)
            before, self._taken = self._taken, now
        return [after - earlier for after, earlier in zip(now, before, strict=True)]

    def to_json(self) -> dict[str, int]:
        """Bytes read, requests made and how many of them were repeats."""
        return {"bytes": self.nbytes, "requests": self.requests, "retries": self.retries}


class ExhaustedError(CheckpointError):
    """Every attempt failed for a reason that may pass."""


class TransientError(Exception):
    """An attempt failed for a reason that may pass; `wait` is how many seconds the server asked for, if it did."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Backoff:
    """Exponential waiting with equal jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).

    Attempt n waits between half and all of min(longest, first * 2**n) seconds, so that many clients do not come back
    at once; a server's own demand is followed up to `patience`.
    """

    tries: int = 6
    first: float = 0.5
    longest: float = 30.0
    patience: float = 600.0

    def seconds(self, attempt: int, asked: float | None = None) -> float:
        """How long to wait after failed attempt number `attempt` (from 0)."""
        if asked is not None:
            return asked + random.uniform(0, min(1.0, self.first))
        return min(self.longest, self.first * 2.0**attempt) * random.uniform(0.5, 1.0)


def persist(
    attempt: Callable[[], Result], what: str, backoff: Backoff, traffic: Traffic, pause: Callable[[float], None]
) -> Result:
    """Call `attempt` until it does not raise TransientError; ExhaustedError after `backoff.tries` failures."""
    for number in range(backoff.tries):
        try:
            return attempt()
        except TransientError as failure:
            if failure.wait is not None and failure.wait > backoff.patience:
                raise ExhaustedError(
                    f"{what}: {failure}; the server asks to wait {failure.wait:.0f} s.",
                    "Run the same command with --resume later. Logging in (`hf auth login`) raises the rate limit.",
                ) from None
            if number + 1 == backoff.tries:
                raise ExhaustedError(
                    f"{what}: {failure}, {backoff.tries} times in a row.",
                    "Check the connection and run the same command again; --resume goes on where it stopped.",
                ) from None
            traffic.count(retries=1)
            pause(backoff.seconds(number, failure.wait))
    raise AssertionError("backoff.tries must be at least 1")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After in seconds or as a date (RFC 9110, 10.2.3), or the Hub's
    own `RateLimit: "api";r=0;t=55`."""
    asked = headers.get("retry-after")
    if asked is not None and asked.strip().isdecimal():
        return float(asked)
    if asked is not None:
        try:
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
        except ValueError:
            return None
    limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


def require_span(status: int, headers: Mapping[str, str], start: int, stop: int, size: int) -> None:
    """TransientError unless the answer promises exactly bytes [start, stop) of a file of `size` bytes (RFC 9110, 14.4).

    A server that ignores Range answers 200 with the whole file: right only if the whole file was asked for.
    """
    whole = status == 200 and (start, stop) == (0, size)
    if status != 206 and not whole:
        raise TransientError(f"expected status 206 for a part of the file, got {status}")
    said, right = headers.get("content-range", "none"), f"bytes {start}-{stop - 1}/{size}"
    if not whole and said.strip() != right:
        raise TransientError(f"expected Content-Range {right!r}, got {said!r}")
    length = headers.get("content-length", str(stop - start))
    if length != str(stop - start):
        raise TransientError(f"expected {stop - start} bytes, the answer announces {length}")
    if headers.get("content-encoding", "identity") != "identity":
        raise TransientError(f"expected plain bytes, got {headers['content-encoding']} encoding")
