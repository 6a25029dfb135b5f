"""The plan for looking at weights: without what the class does not build."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint.index import Checkpoint
from ..errors import TargetError
from .linear import spelled_out
from .module_tree import UnbuiltError, check_modules
from .plan import make_plan
from .projections import Plan
from .selection import Selection


def plan_as_built(checkpoint: Checkpoint, selection: Selection) -> tuple[Plan, Selection]:
    """The plan for looking at weights, without what the class does not build; waits for the class where config.json
    does not tell. Names of modules that do not fit do no harm there. Raises what `make_plan` does."""
    roles = spelled_out(checkpoint, selection.roles)
    selection = replace(selection, roles=roles.roles)
    plan, told = make_plan(checkpoint, selection, quantised=True), tuple(roles.notices)
    check = check_modules(checkpoint, plan, selection)
    try:
        told += check.finish().notices
    except UnbuiltError as error:
        selection = replace(selection, unbuilt=error.modules)
        plan = make_plan(checkpoint, selection, quantised=True)
    except TargetError as error:
        told += (f"modules are called otherwise in memory: {error.problem}",)
    finally:
        check.cancel()
    return replace(plan, notices=(*plan.notices, *told)), selection
