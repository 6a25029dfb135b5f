"""What the answer of the class means: all is there, some of it is not built, or the names do not fit at all."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import TargetError, listed
from .projections import Plan
from .proven import proven_versions, proven_with

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """exact: target_modules hit the planned modules and no others, as far as is known. unbuilt: planned modules that
    the class does not build. known: whether the class could be asked, or need not be."""

    exact: bool
    notices: tuple[str, ...] = ()
    unbuilt: tuple[str, ...] = ()
    known: bool = True


def judge(answer: Answer, plan: Plan, location: str, by_hand: bool = False) -> Verdict:
    """TargetError where modules of the class have other names than those planned: that is no layer to leave alone.
    For tensors that were named `by_hand` it is a notice."""
    if "unknown" in answer:
        return _unchecked(answer["unknown"])
    missing = answer["missing"]
    if askew := _askew(answer, plan):
        raise TargetError(
            f"{location}: {answer['class']} stores {listed(askew)} the other way round than it was taken.",
            "The table needs a row for such models (examples/guide/models.md, Adding an architecture).",
        )
    if strange := misnamed(plan, missing, answer["unclaimed"]):
        if by_hand:
            return _unchecked(f"the tensors were named by hand, and {answer['class']} has no {listed(strange)}")
        raise TargetError(
            f"{location}: {answer['class']} has no {listed(strange)}.",
            f"In transformers {answer['version']} they are not there, or have other names than in the file, and no "
            f"adapter would reach them. {_advice(plan, answer['version'])}",
        )
    return Verdict(exact=not answer["extra"], unbuilt=tuple(missing))


def misnamed(plan: Plan, missing: Collection[str], unclaimed: Mapping[str, Any]) -> list[str]:
    """Those of the missing modules that the class may well have, under names that are not known here.

    A layer that is not built has siblings that are, under the same name but for the number. Without one, the class may
    still not build it (`mtp.*`), if it has no module of that size which the file does not name. Where a role has no
    module at all, its names are wrong.
    """
    gone, sizes = set(missing), {carrier.module: sorted(carrier.sides) for carrier in plan.carriers}
    roles = {target.role for target in plan.targets}
    by_role = [{target.module for target in plan.targets if target.role == role} for role in roles]
    wholly = {module for modules in by_role if modules <= gone for module in modules}
    siblings = {_numberless(module) for module in sizes.keys() - gone}
    alike = [list(size) for size in unclaimed.values()]
    other = {module for module in missing if _numberless(module) not in siblings and sizes[module] in alike}
    return sorted(wholly | other)


def _advice(plan: Plan, version: str) -> str:
    proven = proven_versions(plan.types)
    if plan.counted and proven and not proven_with(version, plan.types):
        return f"The table has the names of other versions, such as transformers {proven[-1]}: install one of those."
    return "The table needs a row for such models (examples/guide/models.md, Adding an architecture)."


def _askew(answer: Answer, plan: Plan) -> list[str]:
    """Modules of a Conv1D that would be taken for those of a Linear, or the reverse."""
    if "turned" not in answer:
        return []
    gone, turned = set(answer["missing"]), set(answer["turned"])
    there = [carrier for carrier in plan.carriers if carrier.module not in gone]
    return [carrier.module for carrier in there if carrier.transposed != (carrier.module in turned)]


def _numberless(module: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", module)


def _unchecked(reason: str) -> Verdict:
    told = f"names of modules are taken from the table, unchecked: {reason}"
    return Verdict(exact=True, notices=(told,), known=False)
