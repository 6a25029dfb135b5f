"""Are the planned modules really there? Asked of the class itself, built without memory on the meta device.

Names in a checkpoint are not always names of modules, checkpoints hold more than their class builds, and PEFT is silent
about a target that hits nothing or too much. A process of its own finds the answer while the work goes on, with little
time and memory: the config is a stranger's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoint.index import Checkpoint
from ..errors import AiloraError, listed
from .module_names import installed_transformers, installed_transformers_major, parameter_paths
from .plan import target_modules
from .projections import Plan
from .proven import proven_with
from .selection import Selection
from .verdict import Answer, Verdict, judge

_SCRIPT = str(Path(__file__).with_name("built_class.py"))
_PATIENCE = 300.0  # seconds that a finished run waits for a process of low priority, which may compute for 120
_NOT_INSTALLED = "transformers is not installed"
_CLOSED = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "USE_HUB_KERNELS": "NO"}


class UnbuiltError(AiloraError):
    """The class lacks some of the planned `modules`: they are to be left out, and the rest is to be planned anew."""

    def __init__(self, modules: Sequence[str]) -> None:
        super().__init__(f"the class does not build {listed(modules)}.")
        self.modules = tuple(modules)


class ModuleCheck:
    """Whether the class has the planned modules: the `answer`, or the `process` that looks for it.

    `location`: the model as messages name it. `by_hand`: the user named tensors, whose modules may be called otherwise.
    """

    def __init__(
        self, plan: Plan, location: str = "", *, answer: Answer | None = None,
        process: subprocess.Popen[str] | None = None, by_hand: bool = False,
    ) -> None:  # fmt: skip
        self._plan, self._location, self._by_hand = plan, location, by_hand
        self._answer, self._process = answer, process

    @classmethod
    def asked(cls, checkpoint: Checkpoint, plan: Plan, *, by_hand: bool) -> ModuleCheck:
        """A check by the class itself, in a process of its own; nothing in the folder of the model is seen by that."""
        modules = {carrier.module: carrier.sides for carrier in plan.carriers}
        held = {path.removesuffix(".weight") for path in parameter_paths(checkpoint).values()}
        question = {
            "config": dict(checkpoint.config),
            "modules": modules,
            "targets": target_modules(plan, checkpoint),
            "held": sorted(held - modules.keys()),
        }
        return cls(plan, checkpoint.location, process=_ask(question, _folder(checkpoint)), by_hand=by_hand)

    @classmethod
    def skipped(cls, plan: Plan, reason: str) -> ModuleCheck:
        """A check that is left out, for a reason that the user is told."""
        return cls(plan, answer={"unknown": reason})

    @classmethod
    def proven(cls, plan: Plan) -> ModuleCheck:
        """A check that is not needed: the tests have shown that the modules are there."""
        return cls(plan, answer={"missing": [], "extra": [], "unclaimed": {}})

    def look(self) -> None:
        """`finish` if the answer is there already, without waiting."""
        if self._process is not None and self._answer is None and self._process.poll() is not None:
            self.finish()

    def finish(self) -> Verdict:
        """Wait for the answer. UnbuiltError for planned modules that the class does not build; TargetError where its
        modules have other names."""
        if self._answer is None:
            assert self._process is not None
            self._answer = _answer(self._process)
        verdict = judge(self._answer, self._plan, self._location, self._by_hand)
        if verdict.unbuilt:
            raise UnbuiltError(verdict.unbuilt)
        return verdict

    def cancel(self) -> None:
        """End the process that looks for the answer, which is no longer wanted."""
        if self._process is not None:
            _end(self._process)


def check_modules(
    checkpoint: Checkpoint, plan: Plan, selection: Selection, transformers_major: int | None = None
) -> ModuleCheck:
    """The question to the real class. Not asked if the user wants another transformers, nor where it is known
    beforehand."""
    if transformers_major not in (None, installed_transformers_major()):
        return ModuleCheck.skipped(plan, f"they are for transformers {transformers_major}, not the installed one")
    if known_beforehand(plan):
        return ModuleCheck.proven(plan)
    if find_spec("transformers") is None:
        return ModuleCheck.skipped(plan, _NOT_INSTALLED)
    return ModuleCheck.asked(checkpoint, plan, by_hand=bool(selection.templates))


def known_beforehand(plan: Plan) -> bool:
    """Whether the tests of this release have asked the very class in a transformers of the installed version, and
    config.json counts what it builds."""
    return plan.counted and proven_with(installed_transformers(), plan.types)


def parts_of_class(checkpoint: Checkpoint, ends: Sequence[str], held: Sequence[str], published: str | None) -> Answer:
    """What the class has under the names `ends`, its input embedding, and which of its parameters are not among those
    `held` (`built_class._parts`); waits for it. published: the class that the checkpoint was saved from."""
    if find_spec("transformers") is None:
        return {"unknown": _NOT_INSTALLED}
    question = {"config": dict(checkpoint.config), "ends": list(ends), "held": list(held), "published": published}
    process = _ask(question, _folder(checkpoint))
    try:
        return _answer(process)
    finally:
        _end(process)


def linear_of_class(checkpoint: Checkpoint) -> Answer:
    """Every linear layer that the class builds, but for the output embedding (`built_class._linear`); waits for it."""
    if find_spec("transformers") is None:
        return {"unknown": _NOT_INSTALLED}
    process = _ask({"config": dict(checkpoint.config), "linear": True}, _folder(checkpoint))
    try:
        return _answer(process)
    finally:
        _end(process)


def _folder(checkpoint: Checkpoint) -> Path | None:
    path = checkpoint.origin.path
    return path.parent if path is not None and path.is_file() else path


def _ask(question: Mapping[str, Any], model: Path | None) -> subprocess.Popen[str]:
    """`built_class` as a script that sees nothing of the current folder or the model's: neither as its own folder, nor
    among the places where Python looks for modules, nor by the environment."""
    process = subprocess.Popen(
        [sys.executable, "-I", _SCRIPT, json.dumps(library_folders(model))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(sys.executable).anchor,
        env={**{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}, **_CLOSED},
    )
    assert process.stdin is not None
    with suppress(OSError, RecursionError), process.stdin as stdin:  # it ended before it read everything: no answer
        json.dump(question, stdin)
    process.stdin = None
    return process


def _answer(process: subprocess.Popen[str]) -> Answer:
    try:
        out, _ = process.communicate(timeout=_PATIENCE)
        return dict(json.loads(out.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        _end(process)
        return {"unknown": f"the class was not built within {_PATIENCE:.0f} s"}
    except (ValueError, IndexError):
        return {"unknown": "the class could not be built within the time and memory it is given"}


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def library_folders(model: Path | None) -> list[str]:
    """Where this Python looks for modules, without the current folder and what lies in that of the model; the
    interpreter's own folders stay, wherever they are."""
    own = {str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    here, strange = Path.cwd(), None if model is None else model.resolve()
    found = []
    for entry in filter(None, sys.path):
        path = Path(entry).resolve()
        if str(path) in own or (path != here and strange not in (path, *path.parents)):
            found.append(str(path))
    return found
