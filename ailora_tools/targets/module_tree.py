"""Are the planned modules really there? Asked of the class itself, built without memory on the meta device.

Names in a checkpoint are not always names of modules, and PEFT is silent about a target that hits nothing or too much.
If transformers is loaded already the answer comes at once; else a process of its own finds it while the work goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..checkpoint.index import Checkpoint
from ..errors import TargetError, listed
from .architectures import BY_MODEL_TYPE, PROVEN_WITH
from .module_names import installed_transformers, installed_transformers_major
from .plan import target_modules
from .projections import Plan
from .selection import Selection

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """exact: target_modules hit the planned modules and no others, as far as is known."""

    exact: bool
    notices: tuple[str, ...] = ()


class ModuleCheck:
    """Asks whether the class has the planned modules, in a process of its own where the answer takes time.

    `modules` are the planned paths, `targets` PEFT's target_modules for them, `location` the checkpoint in messages.
    """

    def __init__(
        self, config: Mapping[str, Any], modules: Sequence[str], targets: Sequence[str], location: str
    ) -> None:
        self._location = location
        self._answer: Answer | None = None
        self._process: subprocess.Popen[str] | None = None
        question = {"config": dict(config), "modules": list(modules), "targets": list(targets)}
        if find_spec("transformers") is None:
            self._answer = {"unknown": "transformers is not installed"}
        elif "transformers" in sys.modules:
            self._answer = look(question)
        else:
            self._process = _ask(question)

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
                f"The names are for transformers {answer['version']}; for another major version use "
                "--transformers-major 4 or 5.",
            )
        return Verdict(exact=not answer["extra"])

    def cancel(self) -> None:
        """End the process that looks for the answer, which is no longer wanted."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> Answer:
        assert self._process is not None
        out, _ = self._process.communicate()
        try:
            return dict(json.loads(out.splitlines()[-1]))
        except (ValueError, IndexError):
            return {"unknown": "the class could not be built"}


def check_modules(checkpoint: Checkpoint, plan: Plan, selection: Selection, transformers_major: int) -> ModuleCheck:
    """The question to the real class. Not asked if the user named the tensors or wants another transformers, nor
    where the tests of this release have asked it of the very class in the installed transformers."""
    if selection.q_tensor or selection.v_tensor:
        return ModuleCheck.skipped("the tensors were named by hand")
    if transformers_major != installed_transformers_major():
        return ModuleCheck.skipped(f"they are for transformers {transformers_major}, not the installed one")
    if plan.model_type in BY_MODEL_TYPE and installed_transformers().startswith(PROVEN_WITH):
        return ModuleCheck.proven()
    modules = [carrier.module for carrier in plan.carriers]
    return ModuleCheck(checkpoint.config, modules, target_modules(plan, checkpoint), checkpoint.location)


def look(question: Mapping[str, Any]) -> dict[str, Any]:
    """Build the class that config.json names, and compare; any failure of the class is "unknown", not an error."""
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    config = question["config"]
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    kind = getattr(transformers, name, None) if name else None
    if kind is None:
        return {"unknown": f"transformers {transformers.__version__} has no class {name}" if name else "no class named"}
    try:
        with torch.device("meta"):
            model = kind(kind.config_class.from_dict(config))
    except Exception as error:  # whatever the code of the class raises for this config
        return {"unknown": f"{name} could not be built ({type(error).__name__})"}
    tree = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    wanted = set(question["modules"])
    hit = {path for path in tree if any(path == end or path.endswith(f".{end}") for end in question["targets"])}
    version = transformers.__version__
    return {"class": name, "version": version, "missing": sorted(wanted - tree), "extra": sorted(hit - wanted)}


def _ask(question: Mapping[str, Any]) -> subprocess.Popen[str]:
    code = (
        "import json, os, sys; hasattr(os, 'nice') and os.nice(10); from ailora_tools.targets.module_tree import look; "
        "print(json.dumps(look(json.load(sys.stdin))))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    with process.stdin as stdin:
        json.dump(question, stdin)
    process.stdin = None
    return process
