"""Both sides of an extraction, matched from names and headers before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..adapters.peft import ADAPTER_CONFIG
from ..analysis.tuned import TunedCheckpoint, pair_checkpoint
from ..checkpoint.files import Files
from ..checkpoint.index import Checkpoint, read_checkpoint
from ..errors import TargetError
from ..methods import ALL_LINEAR, ROLES
from ..targets.linear import Roles, spelled_out
from ..targets.module_names import installed_transformers_major
from ..targets.module_tree import UnbuiltError, check_modules
from ..targets.plan import find_matches, make_plan, unreached_by_peft
from ..targets.projections import Carrier, Plan
from ..targets.selection import Selection

_IN_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Pairs:
    """The base with its plan, and the fine-tune with the matrix that belongs to each of the plan's targets.

    exact: last names in target_modules hit the planned modules and no others, as far as is known. whole: every linear
    layer was asked for, and not only some roles or layers.
    """

    base: Checkpoint
    tuned: Checkpoint
    plan: Plan
    fine: TunedCheckpoint
    exact: bool
    whole: bool
    notices: tuple[str, ...]

    @property
    def taken(self) -> tuple[set[str], set[str]]:
        """Names of the tensors that the plan covers, in the base and in the fine-tune."""
        there = {target.tensor: Carrier((target,)) for target in self.fine.pairs.values()}
        return _pieces(self.plan.carriers), _pieces(there.values())

    @property
    def reads(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """(file, bytes) of what is read for them, in the base and in the fine-tune."""
        there = {target.stored.name: target.stored for target in self.fine.pairs.values()}
        return self.plan.reads, [(stored.file, stored.nbytes) for stored in there.values()]


def _pieces(carriers: Iterable[Carrier]) -> set[str]:
    found: set[str] = set()
    for carrier in carriers:
        found.add(carrier.stored.name)
        found |= {piece.name for piece in carrier.quantised.pieces.values()} if carrier.quantised else set()
    return found


def pair_up(base: Checkpoint, tuned: Files, selection: Selection, *, everything: bool) -> Pairs:
    """Find the linear layers of both. With `everything` the roles of the selection count for nothing: every linear
    layer is taken that the class has, or, where it cannot be asked, every role that the names tell.

    Raises CheckpointError, TargetError where the two do not belong together, OptionError for layers that are not there.
    """
    if ADAPTER_CONFIG in tuned.names():
        raise TargetError(
            f"{tuned.origin.text} is an adapter, not a model.",
            "To give it another rank: ailora-tools convert --rank. Or merge it first, and extract from that.",
        )
    roles = every_role(base) if everything else spelled_out(base, selection.roles, 1, installed_transformers_major())
    selection = replace(selection, roles=roles.roles)
    plan, selection, exact, told = _as_loaded(base, selection)
    other = read_checkpoint(tuned)
    fine = pair_checkpoint(other, base, plan, selection)
    notices = (*plan.notices, *roles.notices, *told, *fine.notices)
    return Pairs(base, other, plan, fine, exact, everything and selection.layers is None, notices)


def every_role(base: Checkpoint) -> Roles:
    """What all-linear stands for. The class is not asked, which takes seconds, where the table has every matrix in the
    layers and the tests have held it against that class; nor where it cannot be: then the table or the names tell."""
    matches = find_matches(base, ROLES)
    found = {match.role for held in matches.values() for match in held}
    roles, major = tuple(role for role in ROLES if role in found), installed_transformers_major()
    tensors = {match.tensor for held in matches.values() for match in held}
    others = [name for name, stored in base.tensors.items() if len(stored.shape) == 2 and _IN_LAYER.search(name)]
    known = roles and not unreached_by_peft(base.model_type, matches, major)
    if known and tensors >= set(others) and make_plan(base, Selection(roles), quantised=True).counted:
        return Roles(roles)
    try:
        return spelled_out(base, (ALL_LINEAR,), 1, major)
    except TargetError:
        if not roles:
            raise
        return Roles(roles)


def _as_loaded(base: Checkpoint, selection: Selection) -> tuple[Plan, Selection, bool, tuple[str, ...]]:
    """The plan without what the class does not build, and whether short names hit it; TargetError for modules that
    have other names there: no adapter would reach them."""
    while True:
        plan = make_plan(base, selection, quantised=True)
        check = check_modules(base, plan, selection)
        try:
            verdict = check.finish()
            return plan, selection, verdict.exact, verdict.notices
        except UnbuiltError as error:
            selection = replace(selection, unbuilt=tuple(sorted({*selection.unbuilt, *error.modules})))
        finally:
            check.cancel()
