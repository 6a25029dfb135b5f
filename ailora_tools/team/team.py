"""Several processes on one job: who is here, what is to be done, and how one failure ends all of them.

The first process is the one that a user would start by himself: it plans, owns the output and speaks. The others wait
for what it calls for, pull items of a common list, and hand in what becomes of them. A process by itself is a team of
one: no socket, no thread, no torch.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import cache, partial
from time import monotonic
from typing import Any

from .. import errors
from ..errors import AiloraError, TeamError, UnfinishedError
from . import pulse as timing
from .board import Alone, Board, Shared, connect
from .place import Place, read_place
from .pulse import Pulse, awaited

_FAREWELL = 10.0  # seconds that a failed process leaves to the first for its message: the agent ends all after that


class Team:
    """The processes of one job. Jobs of one process come one after the other, in the same order in all of them."""

    def __init__(self, place: Place, root: Shared | None = None) -> None:
        self.place = place
        self._root = root
        self._attempt: Shared | None = root.under(str(place.restarts)) if root else None
        self._jobs = 0

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.place.size

    @property
    def leads(self) -> bool:
        """Whether this one owns the output and speaks to the user."""
        return self.place.leads

    @contextmanager
    def job(self, verb: str) -> Iterator[Job]:
        """One call of a verb, by all processes. An AiloraError in one of them ends it in all with that error, and
        `error.told` says in all but the first that the user hears of it there."""
        self._jobs += 1
        key = f"{self._jobs}-{verb}"
        last = self._root.under(f"job/{key}") if self._root else Alone()
        job = Job(self.place, self._attempt.under(key) if self._attempt else Alone(), last)
        with job.running():
            yield job

    def ended(self) -> int | None:
        """The exit code of an error that was told before a restart, which could not help."""
        code: int | None = self._root.read("ended") if self._root and self.place.restarts else None
        return code

    def farewell(self, error: AiloraError) -> None:
        """Called before a process ends with an error: the others wait until the first has said what it was."""
        if self._root is None or self._attempt is None:
            return
        with suppress(TeamError):
            if self.leads:
                if not may_pass(error):
                    self._root.post("ended", error.exit_code)
                self._attempt.post("told", True)
            else:
                attempt, end = self._attempt, monotonic() + _FAREWELL
                awaited(lambda: attempt.read("told") or monotonic() > end)


class Job:
    """One call of a verb. See `share` and `serve` in `sharing` for lists of items that all work on."""

    def __init__(self, place: Place, board: Board, last: Board) -> None:
        self.place, self.board = place, board
        self._last = last  # what outlives a restart
        self.pulse = Pulse(board, place.rank, place.size, {"host": socket.gethostname(), "pid": os.getpid()})
        self.calls_made = 0
        self.named: set[int] = set()  # silent processes that the user has heard of

    @property
    def alone(self) -> bool:
        """Whether one process does everything."""
        return self.place.size == 1

    @property
    def leads(self) -> bool:
        """Whether this process owns the output."""
        return self.place.leads

    @property
    def restarted(self) -> bool:
        """Whether torchrun has started all processes anew, so that unfinished work is to be gone on with."""
        return self.place.restarts > 0

    @property
    def me(self) -> str:
        """This process in a message."""
        return f"process {self.place.rank} of {self.place.size} on {socket.gethostname()}"

    def call(self, value: Any) -> None:
        """Tell the others what is to be done now, as JSON: what they open, with which settings, where they hand in."""
        self.calls_made += 1
        self.board.post(f"call/{self.calls_made}", value)

    def calls(self) -> Iterator[Any]:
        """What the first process calls for, one after the other until it is done. For all others.

        Raises the error that ended the job elsewhere; TeamError where the first process is not heard of any more.
        """
        while True:
            key = f"call/{self.calls_made + 1}"
            awaited(partial(self._called, key))
            value = self.board.read(key)
            if value is None:
                return
            self.calls_made += 1
            yield value

    def expect(self) -> Any:
        """What the first process calls for next; TeamError where it ends instead."""
        for value in self.calls():
            return value
        raise TeamError("The first process of the job has ended.", "See what it says.")

    def check(self) -> None:
        """Raise the error that ended the job elsewhere, if one did."""
        if self.pulse.abort is not None and self.pulse.abort["rank"] != self.place.rank:
            raise _error(self.pulse.abort)
        if not self.leads and self.pulse.silence(0) > timing.HUNG:
            told = f"The first process of the job has not been heard of for {timing.HUNG:.0f} s."
            raise TeamError(told, "Run it again with --resume.")

    def keep(self, key: str, value: Any) -> None:
        """Remember a JSON value over restarts."""
        self._last.post(key, value)

    def kept(self, key: str) -> Any:
        """What was remembered, also by processes that died; None if nothing was."""
        return self._last.read(key)

    def missing(self) -> dict[int, str]:
        """Processes that were here and are silent -> what to call them."""
        signs = self.pulse.signs
        return {
            rank: f"process {rank} ({signs[rank].said['pid']} on {signs[rank].said['host']})"
            for rank in sorted(signs)
            if self.pulse.silence(rank) > timing.HUNG
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Between the first and the last sign of life; see `Team.job`."""
        if self.alone:
            yield
            return
        self.pulse.start()
        try:
            yield
        except AiloraError as error:
            self._fail(error)
            raise
        except OSError as error:  # that of the first process reaches its user by itself
            if self.leads or error.filename is None:
                raise
            told = UnfinishedError(f"{self.me}: {error.filename}: {error.strerror}.", "Run it again with --resume.")
            self._fail(told)
            raise told from None
        finally:
            self._finish()

    def done(self, nbytes: int, cost: float) -> None:
        """One more item is done; all hear of it."""
        self.pulse.done(nbytes, cost)

    def ended(self) -> bool:
        """Whether the first process has called for the last time; raises what `check` does."""
        over = self.pulse.over is not None
        self.check()
        return over

    def _called(self, key: str) -> bool:
        return self.ended() or self.board.read(key) is not None

    def _fail(self, error: AiloraError) -> None:
        """Let it be the end for all, unless that was told already; others wait until the first has cleaned up, which
        alone shows it."""
        if error.told:
            error.told = not self.leads
            return
        record = {"kind": type(error).__name__, "problem": error.problem, "hint": error.hint, "rank": self.place.rank}
        with suppress(TeamError):
            if self.board.count("failures") == 0:
                self.board.post("abort", record)
            if not self.leads:
                awaited(lambda: self.pulse.over is not None or self.pulse.silence(0) > timing.HUNG)
        error.told = not self.leads

    def _finish(self) -> None:
        with suppress(TeamError):
            if self.leads:
                self.board.post("over", {})
                self._wake()
        self.pulse.stop()

    def _wake(self) -> None:
        """Let processes of this machine that were stopped see that the job is over: torchrun waits for all of them."""
        here = [sign.said for sign in self.pulse.signs.values() if sign.said["host"] == socket.gethostname()]
        for said in here if hasattr(signal, "SIGCONT") else ():
            with suppress(OSError):
                os.kill(said["pid"], signal.SIGCONT)


class Aside(Job):
    """The same call of the same job for a list beside another one, in a thread of its own: no progress tells of it, and
    it ends where `stop` says so."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.place, job.board, job._last)
        self.pulse, self.calls_made, self.named = job.pulse, job.calls_made, job.named
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make the next `check` raise CancelledError."""
        self._stopped.set()

    def check(self) -> None:
        if self._stopped.is_set():
            raise CancelledError
        super().check()

    def done(self, nbytes: int, cost: float) -> None:
        pass


@cache
def find_team() -> Team:
    """The processes that torchrun, accelerate or srun started this one with; a team of one without them.

    TeamError if their store is not there. Loads torch only where there are several.
    """
    place = read_place()
    if place.size == 1:
        return Team(place)
    root = connect(place)
    if place.leads and root.count(f"started/{place.restarts}"):
        raise TeamError(
            "The processes of this job were started anew on another number of machines.",
            "Give torchrun a fixed number of them: --nnodes 4, not --nnodes 2:4.",
        )
    if not place.hosted:
        atexit.register(_leave, place, root)
    return Team(place, root)


def _leave(place: Place, root: Shared) -> None:
    """Where the first process is the store, it ends last; not later than others would count as hung."""
    with suppress(TeamError):
        if not place.leads:
            root.count("left")
            return
        end = monotonic() + timing.HUNG
        awaited(lambda: root.count("left", 0) >= place.size - 1 or monotonic() > end)


def farewell(error: AiloraError) -> None:
    """`Team.farewell`, where this process has found its team."""
    if find_team.cache_info().currsize:
        find_team().farewell(error)


def may_pass(error: AiloraError) -> bool:
    """Whether another attempt may end better: a network or a process failed, not the input."""
    return isinstance(error, UnfinishedError) or type(error).__name__ == "ExhaustedError"  # of a room further down


def _error(record: dict[str, Any]) -> AiloraError:
    """What another process raised."""
    kinds: dict[str, Callable[[str, str], AiloraError]] = {
        name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AiloraError)
    }
    error = kinds.get(record["kind"], AiloraError)(record["problem"], record["hint"])
    error.told = True
    return error
