"""A converted adapter against its start and its trained adapter: is it what training changed, module by module?

With W = W_res + s0 B0 A0 the change is s B A - s0 B0 A0, and where nothing was taken out of the base s B A. The plain
adapter may be further from it than the best approximation of its rank only by what storing its factors costs: of
factors whose squared norms are the sum of k singular values 2 u sqrt(k) of the change (Cauchy and Schwarz, twice), u
being half of eps of their dtype; of factors that were kept 2 u s norm(B) norm(A).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters.binding import Directory, bind
from ..adapters.folder import Adapter, Factors
from ..adapters.keys import saved_name
from ..checkpoint.stream import DTYPES
from ..errors import listed
from ..linalg.agreement import roundoff
from ..linalg.lowrank import distance, factorise
from ..output.manifest import Manifest
from .folder import Check

_SLACK = 1e-3  # of a recorded error: the order of sums
_FLOOR = 1e-9  # of the change: what float64 leaves where nothing else is lost
_NOTHING = 1e-12  # of both products: below it their difference is the rounding of float64
_NEAR = 0.02
_WHOLE = 0.05

Thin = tuple[Tensor, Tensor]  # B (out, r), with s in it, and A (r, in), float64: the matrix B A


@dataclass(frozen=True)
class Module:
    """One module: norm(change - stored) / norm(change), what it may be, and what is wrong with it, "" if nothing."""

    module: str
    error: float
    limit: float
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Conversion:
    """The plain adapter, that of the start and the trained one; names: module of the trained one -> module of the
    start; plain_names: module of the plain one -> module of the trained one. moved: whether the start was taken out of
    the base."""

    plain: Adapter
    initial: Adapter
    trained: Adapter
    moved: bool
    names: Mapping[str, str]
    now: Mapping[str, Factors]
    plain_names: Mapping[str, str]
    added: tuple[str, ...]

    def change(self, module: str) -> Thin:
        """What training changed of a module of the trained adapter."""
        now, then = self.now[module], self.initial.modules[self.names[module]]
        B, A = thin(self.trained, now)
        if not self.moved:
            return B, A
        B0, A0 = thin(self.initial, then)
        return torch.cat([B, -B0], 1), torch.cat([A, A0])


def thin(adapter: Adapter, factors: Factors) -> Thin:
    """The factors of a module, s in B."""
    return factors.scaling * adapter.load(factors.B).double(), adapter.load(factors.A).double()


def matched(plain: Adapter, initial: Adapter, trained: Adapter, manifest: Manifest) -> Conversion:
    """TargetError where modules of the trained adapter or of the plain one are not those of the start; modules that the
    start has not are `added`."""
    hint = "Give the folder that `init` wrote and this training loaded its adapter from."
    known = Directory({module: (f"{module}.weight",) for module in initial.modules})
    names = bind(trained, known, f"the start in {initial.location}", hint, only_modules=True)
    of_plain = {module: known.find(f"{module}.weight") for module in plain.modules}
    homes = {then: module for module, then in names.modules.items()}
    plain_names = {module: homes[near[0]] for module, near in of_plain.items() if len(near) == 1 and near[0] in homes}
    added = tuple(module for module in plain.modules if module not in plain_names)
    moved = manifest.base or manifest.offset
    return Conversion(plain, initial, trained, moved, names.modules, names.factors, plain_names, added)


def check_modules(job: Conversion) -> Check:
    """The plain adapter has exactly the modules of the start; in others its factors are zero."""
    there = set(job.plain_names.values())
    lost = sorted(set(job.names) - there)
    unstarted = sorted(set(job.initial.modules) - set(job.names.values()))
    extra = [module for module in job.added if _is_something(job.plain, module)]
    faults = [f"{listed(lost)} missing"] if lost else []
    faults += [f"{listed(unstarted)} missing in the trained adapter"] if unstarted else []
    faults += [f"{listed(extra)} not in the start"] if extra else []
    faults += ["the trained adapter has magnitudes (DoRA), which no plain LoRA has"] if job.trained.dora else []
    told = f"{len(there)} modules" + (f", and zeros in {len(job.added)} others" if job.added else "")
    return Check("modules", not faults, "; ".join(faults) or told)


def _is_something(adapter: Adapter, module: str) -> bool:
    factors = adapter.modules[module]
    return bool(adapter.load(factors.B).any()) and bool(adapter.load(factors.A).any())


def check_base(job: Conversion, manifest: Manifest) -> Check:
    """It is for the original, and not for the residual base."""
    expected = str(manifest.source["location"]).removeprefix("hf://")
    named = job.plain.config.get("base_model_name_or_path")
    held = named == expected
    told = f"for {expected}" if held else f"base_model_name_or_path is {named!r}, the original is {expected!r}"
    return Check("base", held or not _is_start(str(named), job), told)


def _is_start(named: str, job: Conversion) -> bool:
    """Whether a base is the folder of the start, which the plain adapter does not fit. The original may have moved."""
    return job.moved and bool(named) and named == str(job.initial.config.get("base_model_name_or_path"))


def check_kept(job: Conversion) -> Check:
    """Tensors beside the factors (`modules_to_save`, biases) are those of the trained adapter."""
    theirs, ours = (
        {saved_name(path, stored): stored for path, stored in (*one.others.items(), *one.tokens.items())}
        for one in (job.trained, job.plain)
    )
    faults = [f"{name} missing" for name in theirs.keys() - ours.keys()]
    faults += [f"{name} not in the trained adapter" for name in ours.keys() - theirs.keys()]
    for name in sorted(theirs.keys() & ours.keys()):
        now, then = job.plain.load(ours[name]), job.trained.load(theirs[name])
        if now.shape != then.shape or not torch.equal(now, then.to(now.dtype)):
            faults.append(f"{name} is not that of the trained adapter")
    return Check("kept", not faults, listed(sorted(faults)) or f"{len(ours)} tensors as trained")


def check_change(found: Sequence[Module], recorded: Mapping[str, float]) -> Check:
    """Every module is what training changed, to the error that was recorded."""
    kinds: dict[str, list[str]] = {}
    for one in found:
        if one.fault:
            kinds.setdefault(one.fault, []).append(one.module)
    wrong = "; ".join(f"{listed(names, 2)} {fault}" for fault, names in list(kinds.items())[:4])
    worst = max((one.error for one in found), default=0.0)
    told = f"{len(found)} modules are what training changed, error at most {worst:.1e}"
    return Check("change", not wrong, wrong or told + (", as recorded" if recorded else ""))


def look(job: Conversion, recorded: Mapping[str, float]) -> Iterator[Module]:
    """Module by module, those that the plain adapter has."""
    for module, origin in job.plain_names.items():
        yield _looked(job, module, origin, recorded.get(module))


def _looked(job: Conversion, module: str, origin: str, recorded: float | None) -> Module:
    factors = job.plain.modules[module]
    wanted, held = job.change(origin), thin(job.plain, factors)
    if factors.sides != job.now[origin].sides:
        return Module(module, math.inf, 0.0, f"has shape {factors.sides}, expected {job.now[origin].sides}")
    best = factorise(*wanted).cleared(_NOTHING * float(wanted[0].norm() * wanted[1].norm()))
    size = float(best.S.norm())
    if not size:
        something = float(factorise(*held).S.norm())
        return Module(module, something, 0.0, "changes something, though training did not" if something else "")
    error = distance(*wanted, *held)
    u = max(roundoff(DTYPES[part.dtype]) for part in (factors.A, factors.B))
    now = thin(job.trained, job.now[origin])
    storing = 2 * u * max(math.sqrt(len(best.S)), 0.0 if job.moved else float(now[0].norm() * now[1].norm()) / size)
    limit = best.lost(factors.rank) * (1 + _SLACK) + storing + _FLOOR
    if recorded is not None and not error <= recorded * (1 + _SLACK) + _FLOOR:
        return Module(module, error, recorded, _cause(job, module, origin, error))
    return Module(module, error, limit, "" if error <= limit else _cause(job, module, origin, error))


def _cause(job: Conversion, module: str, origin: str, error: float) -> str:
    """Which mistake it looks like; what is tried is what conversions are known to go wrong with."""
    wanted, held = job.change(origin), thin(job.plain, job.plain.modules[module])
    size = _inner(wanted, wanted)
    if _inner(held, held) <= (_NEAR**2) * size:
        return "changes nothing"
    share = _inner(held, wanted) / size
    if distance(*_times(wanted, share), *held) < _NEAR and abs(share) > _WHOLE:
        if abs(share - 1) < _NEAR:
            return f"is {error:.1e} off, more than its rank and its dtype explain"
        return "has the change twice" if abs(share - 2) < _WHOLE else f"has {share:.4g} times the change"
    for told, other in _mistakes(job, origin):
        if other[0].shape[0] == held[0].shape[0] and _is_like(other, held):
            return told
    rank = int((factorise(*held).S > 1e-6 * math.sqrt(size)).sum())
    found = factorise(*wanted)
    A, B = found.balanced(rank)
    if rank < job.plain.modules[module].rank and distance(B, A, *held) < _NEAR:
        return f"has {rank} components of the change, its rank says {job.plain.modules[module].rank}"
    return f"is {error:.2g} of the change off: of another training, or changed"


def _mistakes(job: Conversion, origin: str) -> Iterator[tuple[str, Thin]]:
    now = thin(job.trained, job.now[origin])
    then = thin(job.initial, job.initial.modules[job.names[origin]])
    if job.moved:
        yield "is the trained adapter itself: the start was not subtracted", now
        yield "is the start, not what training changed", then
    for other in job.names:
        if other != origin and job.now[other].sides == job.now[origin].sides:
            yield f"has the change of {other}", job.change(other)


def _is_like(expected: Thin, held: Thin) -> bool:
    share = _inner(expected, held) / (_inner(expected, expected) or 1.0)
    return abs(share - 1) < _WHOLE and distance(*expected, *held) < _NEAR


def _times(product: Thin, factor: float) -> Thin:
    return factor * product[0], product[1]


def _inner(one: Thin, other: Thin) -> float:
    """<B A, B1 A1>, without forming either."""
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())
