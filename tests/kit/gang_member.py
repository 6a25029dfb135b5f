"""One process of a gang, as torchrun starts it: the calls of plan.json, and what happens to it on the way.

strike: {"rank", "attempt", "event", "action"}: at the `event`-th file-system or socket call that Python audits the
process is killed, stopped, or kills the agent. hung: seconds without a sign of life that count as hung.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
PLAN = json.loads((FOLDER / "plan.json").read_text())
RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir", "os.truncate")
SPREAD = 3  # an agent is killed, too, when a process of it is: then it has to be the first to die

(FOLDER / f"pid-{os.getpid()}").touch()
count = 0


def watch(strikes: list[dict[str, Any]]) -> None:
    """From here on events are counted, and a process dies at the one that is planned for it."""

    def hook(event: str, args: tuple[object, ...]) -> None:
        global count
        if event not in WATCHED or str(FOLDER) in str(args[0]):
            return
        count += 1
        for strike in strikes:
            if count == strike["event"]:
                act(strike["action"])

    sys.addaudithook(hook)


def act(action: str) -> None:
    """What befalls the process, or its agent."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        os.kill(os.getppid(), signal.SIGKILL if action == "kill the agent" else signal.SIGTERM)


def main() -> None:
    """Make the calls, and write down how each ended."""
    import torch  # noqa: F401 - what it opens while it is loaded is not counted

    from ailora_tools.cli import main as command
    from ailora_tools.team import pulse

    pulse.HUNG = PLAN.get("hung", pulse.HUNG)
    codes: list[int] = []
    strikes = [one for one in PLAN.get("strikes", ()) if (one["rank"], one["attempt"]) == (RANK, ATTEMPT)]
    watch(strikes)
    for call in PLAN["calls"]:
        try:
            command(call, standalone_mode=False)
            codes.append(0)
        except SystemExit as ended:
            codes.append(int(ended.code or 0))
    (FOLDER / f"codes-{RANK}.json").write_text(json.dumps(codes))
    (FOLDER / f"events-{RANK}.json").write_text(json.dumps(count))
    sys.exit(codes[-1] if codes else 0)


main()
