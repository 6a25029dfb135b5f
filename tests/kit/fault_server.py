"""The program that runs command lines, each in a child of its own with a fault to meet: see `kit.faults`.

It imports everything once (seconds), so that a child costs a fork. One request a line on stdin, one answer on stdout:
`start` a command line -> the child's pid; `wait` for it -> its exit code, negative for a signal, or "stopped".
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import traceback
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from safetensors import torch as _safetensors  # noqa: F401 - imported before the first child needs it

import ailora_tools
from ailora_tools.cli import main

TRACEBACK = 99  # the exit code of a child that ended with an error nobody named
SHIM = ctypes.CDLL(os.environ["LD_PRELOAD"])


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    prepare()
    print("ready", file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        answer = wait(request["wait"]) if "wait" in request else start(request)
        print(json.dumps(answer), file=answers)


def prepare() -> None:
    """Import what the verbs import on their way, start no threads, and stop the clock that analyses record."""
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(ailora_tools.__path__, "ailora_tools."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    transformers.LlamaForCausalLM  # noqa: B018 - it is loaded when it is named
    clock = SimpleNamespace(monotonic=lambda: 0.0, gmtime=lambda: None, strftime=lambda *_: "2000-01-01T00:00:00Z")
    for name in ("verbs.analyze", "analysis.document"):
        importlib.import_module(f"ailora_tools.{name}").time = clock  # type: ignore[attr-defined]


def start(request: dict[str, Any]) -> int:
    """Fork a child that runs the command line; its pid."""
    pid = os.fork()
    if pid == 0:
        os._exit(run(request))
    return pid


def wait(pid: int) -> int | str:
    """Until the child ends or is stopped."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    return "stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def run(request: dict[str, Any]) -> int:
    """The command line in this process, with everything it prints in a file; its exit code."""
    printed = os.open(request["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, limit in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    first, last = (ctypes.c_long(number) for number in request["calls"])
    root = os.fsencode(request["root"])
    SHIM.faults_arm(root, request["kinds"], first, last, request["action"], request["error"], log)
    try:
        main(args=request["command"], prog_name="ailora-tools")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
        code = TRACEBACK
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
    os._exit(0)  # nothing to put in order, which takes torch seconds
