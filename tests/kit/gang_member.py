"""One process of a gang, as torchrun starts it: the calls of plan.json, and what happens to it on the way.

strikes: [{"rank", "attempt", "event", "action", "within"}]: at the `event`-th call to the file system that Python
audits, of those with a path that has `within` in it, the process is killed or stopped, or kills or ends the agent, or
the disk is full.
hung: seconds without a sign of life that count as hung. patient: the first process takes no matrix before one of the
others was struck. together: none ends before all have written down how their calls ended, since torchrun ends the
others as soon as one has failed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
PLAN = json.loads((FOLDER / "plan.json").read_text())
RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir", "os.truncate")
ROOT = str(FOLDER.parents[1])  # of the models and outputs of the tests

(FOLDER / f"pid-{os.getpid()}").touch()
counts: Counter[str] = Counter()


def watch(strikes: list[dict[str, Any]]) -> None:
    """From here on events are counted, and a process dies at the one that is planned for it."""

    def hook(event: str, args: tuple[object, ...]) -> None:
        path = str(args[0]) if event in WATCHED else ""
        if not path.startswith(ROOT) or path.startswith(str(FOLDER)):
            return
        for within in {strike.get("within", "") for strike in strikes}:
            counts[within] += within in path
        for strike in strikes:
            if strike.get("within", "") in path and counts[strike.get("within", "")] == strike["event"]:
                act(strike["action"], path)

    sys.addaudithook(hook)


def act(action: str, path: str) -> None:
    """What befalls the process, or its agent."""
    (FOLDER / f"struck-{RANK}").touch()
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "fill the disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    else:
        os.kill(os.getppid(), signal.SIGKILL if action == "kill the agent" else signal.SIGTERM)


def main() -> None:
    """Make the calls, and write down how each ended."""
    import torch  # noqa: F401 - what it opens while it is loaded is not counted

    from ailora_tools.cli import main as command
    from ailora_tools.team import pulse, sharing

    pulse.HUNG = PLAN.get("hung", pulse.HUNG)
    claims = sharing._List.claims

    def patient(self: Any) -> Iterator[Any]:
        pulse.awaited(lambda: any(FOLDER.glob("struck-*")))
        yield from claims(self)

    if PLAN.get("patient") and RANK == 0:
        sharing._List.claims = patient  # type: ignore[method-assign]
    codes: list[int] = []
    strikes = [one for one in PLAN.get("strikes", ()) if (one["rank"], one["attempt"]) == (RANK, ATTEMPT)]
    watch(strikes)
    for call in PLAN["calls"]:
        try:
            command(call, standalone_mode=False)
            codes.append(0)
        except SystemExit as ended:
            codes.append(int(ended.code or 0))
    written = FOLDER / f"codes-{ATTEMPT}-{RANK}.json"
    written.with_suffix(".part").write_text(json.dumps(codes))
    written.with_suffix(".part").rename(written)
    if PLAN.get("together"):
        size = int(os.environ["WORLD_SIZE"])
        pulse.awaited(lambda: len(list(FOLDER.glob(f"codes-{ATTEMPT}-*.json"))) == size)
    sys.exit(codes[-1] if codes else 0)


main()
