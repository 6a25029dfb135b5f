"""Whether the class that loads the base builds every module that the adapter is for."""

from __future__ import annotations

from ..checkpoint.index import Checkpoint, read_checkpoint
from ..errors import AiloraError, CheckpointError, listed
from ..surgery.operation import Operation
from ..targets.module_names import installed_transformers
from ..targets.module_tree import UnbuiltError, check_modules, known_beforehand
from ..targets.notices import by_reason
from .folder import Check
from .plan import derive
from .subject import Subject

_NAME = "modules"
_AGAIN = "loading loses their part of the adapter, which the base lacks: run init again"


def check_built(subject: Subject, ask: bool) -> Check:
    """By config.json of the source, or of the base itself; where it does not tell, by the class, if that may take its
    time: `ask`."""
    operation, refusal = subject.operation, subject.refusal
    if operation is None and not refusal:
        base = _base(subject)
        if base is None:
            return Check(_NAME, True, "which modules the class builds is not known without the source")
        operation, refusal = derive(subject.manifest, base)
    if operation is None:
        return Check(_NAME, True, f"which modules the class builds cannot be told: {refusal}")
    recorded = {record.tensor for record in subject.manifest.modules}
    surplus = {tensor: why for tensor, why in operation.plan.unbuilt.items() if tensor in recorded}
    if surplus:
        told = "; ".join(f"because they {why}: {listed(tensors)}" for why, tensors in by_reason(surplus).items())
        return Check(_NAME, False, f"{len(surplus)} are not built by the class, {told}: {_AGAIN}")
    count = len(subject.modules)
    if known_beforehand(operation.plan) or (operation.plan.counted and not installed_transformers()):
        return Check(_NAME, True, f"the class builds all {count}, by what config.json counts")
    return _asked(operation, count) if ask else Check(_NAME, True, "the class is not asked: the folder does not hold")


def _base(subject: Subject) -> Checkpoint | None:
    try:
        return read_checkpoint(subject.files) if subject.manifest.base else None
    except CheckpointError:
        return None


def _asked(operation: Operation, count: int) -> Check:
    settings = operation.settings
    check = check_modules(operation.checkpoint, operation.plan, settings.selection, settings.transformers_major)
    try:
        verdict = check.finish()
    except UnbuiltError as error:
        return Check(_NAME, False, f"the class does not build {listed(error.modules)}: {_AGAIN}")
    except AiloraError as error:
        return Check(_NAME, False, error.problem)
    finally:
        check.cancel()
    return Check(_NAME, True, f"the class builds all {count}" if verdict.known else verdict.notices[0])
