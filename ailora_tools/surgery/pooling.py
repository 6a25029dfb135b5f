"""QA-LoRA (arXiv 2309.14717): which groups of inputs an adapter may sum over, and what it needs of its base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..errors import listed
from ..methods import Method
from ..targets.projections import Carrier, Plan
from .settings import Settings


def with_group(settings: Settings, method: Method, plan: Plan) -> Settings:
    """The settings with a size for the groups, where the method has them: by default the largest of the base."""
    if not method.pooled or settings.group_size is not None:
        return settings
    return replace(settings, group_size=max(map(base_group, plan.carriers)))


def base_group(carrier: Carrier) -> int:
    """How many inputs share a scale and a zero point; all of them, where each row has one of its own."""
    size = carrier.quantised.settings.get("group_size") if carrier.quantised else None
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else carrier.sides[1]


def pooling_faults(settings: Settings, method: Method, plan: Plan) -> Iterator[str]:
    """What does not go together with groups, or with none."""
    if not method.pooled:
        if settings.group_size is not None:
            yield "--group-size is for --method qalora"
        return
    size, carriers = settings.group_size or 0, plan.carriers
    if not all(method.rule(one.role).pooled for one in plan.targets):
        yield "PEFT pools the inputs of all modules of an adapter or of none: no other rule beside it"
    if settings.dora:
        yield "PEFT has no DoRA on layers that pool their inputs: no --dora"
    other = [one.stored.name for one in carriers if one.quantised is None or one.quantised.format.name != "gptq"]
    if other:
        yield f"{listed(other)} are not in GPTQ's format: PEFT pools inputs on its layers, and elsewhere silently none"
        return
    wrong = [f"{one.module} ({one.sides[1]})" for one in carriers if size < 1 or one.sides[1] % size]
    if wrong:
        yield f"groups of {size} inputs do not divide those of {listed(wrong)}"
    apart = [f"{one.module} ({base_group(one)})" for one in carriers if size % base_group(one)]
    if apart:
        yield (
            f"groups of {size} inputs are no multiple of those that share a zero point in the base, {listed(apart)}: "
            "what is trained could never go into zero points"
        )
