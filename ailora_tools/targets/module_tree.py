"""Are the planned modules really there? Asked of the class itself, built without memory on the meta device.

Names in a checkpoint are not always names of modules, and PEFT is silent about a target that hits nothing or too much.
A process of its own finds the answer while the work goes on, with little time and memory: the config is a stranger's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoint.index import Checkpoint
from ..errors import TargetError, listed
from .architectures import BY_MODEL_TYPE, PROVEN_WITH
from .module_names import installed_transformers, installed_transformers_major
from .plan import target_modules
from .projections import Plan
from .selection import Selection

Answer = Mapping[str, Any]

_SCRIPT = str(Path(__file__).with_name("built_class.py"))
_PATIENCE = 300.0  # seconds that a finished run waits for a process of low priority, which may compute for 120
_CLOSED = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "USE_HUB_KERNELS": "NO"}


@dataclass(frozen=True)
class Verdict:
    """exact: target_modules hit the planned modules and no others, as far as is known."""

    exact: bool
    notices: tuple[str, ...] = ()


class ModuleCheck:
    """Asks whether the class has the planned modules, in a process of its own where the answer takes time.

    `modules` are the planned paths, `targets` PEFT's target_modules for them, `location` the checkpoint in messages;
    nothing in the folder `model` is seen by that process.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        modules: Sequence[str],
        targets: Sequence[str],
        location: str,
        model: Path | None = None,
    ) -> None:
        self._location = location
        self._answer: Answer | None = None
        self._process: subprocess.Popen[str] | None = None
        question = {"config": dict(config), "modules": list(modules), "targets": list(targets)}
        if find_spec("transformers") is None:
            self._answer = {"unknown": "transformers is not installed"}
        else:
            self._process = _ask(question, model)

    @classmethod
    def skipped(cls, reason: str) -> ModuleCheck:
        """A check that is left out, for a reason that the user is told."""
        return cls._answered({"unknown": reason})

    @classmethod
    def proven(cls) -> ModuleCheck:
        """A check that is not needed: the tests have shown that the modules are there."""
        return cls._answered({"missing": [], "extra": []})

    @classmethod
    def _answered(cls, answer: Answer) -> ModuleCheck:
        check = cls.__new__(cls)
        check._location, check._process, check._answer = "", None, answer
        return check

    def finish(self) -> Verdict:
        """Wait for the answer; TargetError that names every planned module that is not there."""
        answer = self._answer if self._answer is not None else self._wait()
        if "unknown" in answer:
            notice = f"names of modules are taken from the table, unchecked: {answer['unknown']}"
            return Verdict(exact=True, notices=(notice,))
        if answer["missing"]:
            raise TargetError(
                f"{self._location}: {answer['class']} has no {listed(answer['missing'])}.",
                f"In transformers {answer['version']} they are not there, or have other names than in the file, and no "
                "adapter would reach them. The table needs a row for such models (examples/guide/models.md, Adding an "
                "architecture).",
            )
        return Verdict(exact=not answer["extra"])

    def cancel(self) -> None:
        """End the process that looks for the answer, which is no longer wanted."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> Answer:
        assert self._process is not None
        try:
            out, _ = self._process.communicate(timeout=_PATIENCE)
            return dict(json.loads(out.splitlines()[-1]))
        except subprocess.TimeoutExpired:
            self.cancel()
            return {"unknown": f"the class was not built within {_PATIENCE:.0f} s"}
        except (ValueError, IndexError):
            return {"unknown": "the class could not be built within the time and memory it is given"}


def check_modules(checkpoint: Checkpoint, plan: Plan, selection: Selection, transformers_major: int) -> ModuleCheck:
    """The question to the real class. Not asked if the user named the tensors or wants another transformers, nor
    where the tests of this release have asked it of the very class in the installed transformers."""
    if selection.q_tensor or selection.v_tensor:
        return ModuleCheck.skipped("the tensors were named by hand")
    if transformers_major != installed_transformers_major():
        return ModuleCheck.skipped(f"they are for transformers {transformers_major}, not the installed one")
    row = BY_MODEL_TYPE.get(plan.model_type or "")
    if row and row.proves(str(plan.model_type)) and installed_transformers().startswith(PROVEN_WITH):
        return ModuleCheck.proven()
    modules = [carrier.module for carrier in plan.carriers]
    path = checkpoint.origin.path
    folder = path.parent if path is not None and path.is_file() else path
    return ModuleCheck(checkpoint.config, modules, target_modules(plan, checkpoint), checkpoint.location, folder)


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
