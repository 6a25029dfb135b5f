"""The tuned side of a comparison: a checkpoint of the same architecture, or a PEFT LoRA folder on top of the base.

Pairing is done from names and headers, before any weight is read, and tells everything that does not fit at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..adapters.binding import bind
from ..adapters.folder import Adapter, Factors, read_adapter
from ..adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..adapters.places import base_directory
from ..checkpoint.files import Files, Origin
from ..checkpoint.header import StoredTensor
from ..checkpoint.index import Checkpoint, read_checkpoint
from ..errors import TargetError, listed
from ..matrices.layouts import Part
from ..targets.plan import make_plan
from ..targets.projections import Plan, Target
from ..targets.selection import Selection
from ..targets.ties import tied_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from ..metrics.change import Difference


class Tuned(Protocol):
    """One fine-tune of the analysed model, paired matrix by matrix."""

    @property
    def origin(self) -> Origin: ...
    @property
    def kind(self) -> str: ...
    @property
    def reads(self) -> tuple[Files, list[str]]:
        """The files that its numbers come from."""
        ...

    @property
    def read_bytes(self) -> int: ...
    @property
    def notices(self) -> tuple[str, ...]: ...

    def difference(self, target: Target, W: Tensor) -> Difference:
        """What it adds to W; reads the weights that this needs."""
        ...


def open_tuned(files: Files, checkpoint: Checkpoint, plan: Plan, selection: Selection) -> Tuned:
    """Pair a fine-tune with the plan; `selection` is what was asked for of the base.

    Raises CheckpointError for damaged files, TargetError where the two do not belong together.
    """
    if ADAPTER_CONFIG in files.names():
        return _adapter(files, checkpoint, plan)
    return pair_checkpoint(read_checkpoint(files), checkpoint, plan, selection)


def pair_checkpoint(tuned: Checkpoint, checkpoint: Checkpoint, plan: Plan, selection: Selection) -> TunedCheckpoint:
    """The same for a checkpoint; TargetError where the two do not belong together."""
    _require_same_type(checkpoint, tuned)
    other = make_plan(tuned, selection, quantised=True)
    places = {(target.role, target.stack, target.layer): target for target in other.targets}
    pairs = {target.label: places.pop((target.role, target.stack, target.layer), None) for target in plan.targets}
    _require_pairs(tuned.location, plan, pairs, list(places.values()))
    names = {target.label: target.tensor for target in plan.targets}
    found = {label: pair for label, pair in pairs.items() if pair is not None}
    return TunedCheckpoint(tuned.files, found, names, tuned.told)


@dataclass(frozen=True)
class TunedCheckpoint:
    """Another checkpoint; `pairs` maps the base's labels to its targets, `names` to the base's tensor names."""

    files: Files
    pairs: Mapping[str, Target]
    names: Mapping[str, str]
    told: tuple[str, ...] = ()
    kind: str = "checkpoint"

    @property
    def origin(self) -> Origin:
        return self.files.origin

    @property
    def reads(self) -> tuple[Files, list[str]]:
        return self.files, sorted({pair.stored.file for pair in self.pairs.values()})

    @property
    def read_bytes(self) -> int:
        return sum(stored.nbytes for stored in {pair.stored for pair in self.pairs.values()})

    @property
    def notices(self) -> tuple[str, ...]:
        """How its files were found, and pairs that only match without a prefix."""
        renamed = [(self.names[label], pair.tensor) for label, pair in self.pairs.items()]
        renamed = [(name, other) for name, other in renamed if name != other]
        told = tuple(f"{self.origin.text}: {text}" for text in self.told)
        if not renamed:
            return told
        first, second = renamed[0]
        return (
            *told,
            f"{len(renamed)} tensors are named differently in {self.origin.text}: {first} is {second} there",
        )

    def difference(self, target: Target, W: Tensor) -> Difference:
        """W1 - W in float64 and its singular values."""
        from ..linalg.finite import require_finite
        from ..linalg.spectrum import spectrum
        from ..metrics.change import Difference

        pair = self.pairs[target.label]
        tuned = load_projection(self.files, pair).to(W.device)
        require_finite(tuned, f"{self.origin.text}: {pair.tensor}")
        delta = tuned.double() - W.double()
        return Difference(delta, tuned, spectrum(delta).S, low_rank=False)


def load_projection(files: Files, target: Target) -> Tensor:
    """W (out, in) of one target, as stored; in float32 if it is quantised."""
    from ..checkpoint.stream import load_matrix
    from ..matrices.dequantise import dequantise
    from ..matrices.gather import gather

    return gather(dequantise(load_matrix(files, target.stored), target.quantised, files), target.part)


@dataclass(frozen=True)
class TunedAdapter:
    """A LoRA folder; `factors` maps the base's labels to their factors, absent where it leaves W alone."""

    adapter: Adapter
    factors: Mapping[str, Factors]
    notices: tuple[str, ...]
    kind: str = "adapter"

    @property
    def origin(self) -> Origin:
        return self.adapter.files.origin

    @property
    def reads(self) -> tuple[Files, list[str]]:
        return self.adapter.files, [ADAPTER_CONFIG, ADAPTER_WEIGHTS]

    @property
    def read_bytes(self) -> int:
        return sum(factor.A.nbytes + factor.B.nbytes for factor in self.factors.values())

    def difference(self, target: Target, W: Tensor) -> Difference:
        """s B A in float64 and its singular values, from the factors; the renormalised matrix with DoRA."""
        import torch

        from ..adapters.apply import rescaled
        from ..linalg.spectrum import low_rank_spectrum, spectrum
        from ..metrics.change import Difference

        factors = self.factors.get(target.label)
        if factors is None:
            return Difference(torch.zeros_like(W, dtype=torch.float64), W, torch.zeros(1, dtype=torch.float64), True)
        A, B = self._load(factors.A, W), _own_rows(self._load(factors.B, W), target)
        delta = (factors.scaling * B) @ A
        if factors.magnitude is not None:
            magnitude = _own_rows(self._load(factors.magnitude, W).view(-1, 1), target)
            tuned = rescaled(W.double() + delta, magnitude, f"{self.origin.text}: {factors.magnitude.name}")
            delta = tuned - W.double()
            return Difference(delta, tuned, spectrum(delta).S, low_rank=True)
        B = factors.scaling * B
        return Difference(delta, W, low_rank_spectrum(B, A).cpu(), low_rank=True, factors=(B, A))

    def _load(self, stored: StoredTensor, W: Tensor) -> Tensor:
        return self.adapter.load(stored).to(W.device).double()


def _own_rows(B: Tensor, target: Target) -> Tensor:
    """The outputs of one projection among those of its module."""
    from ..matrices.gather import gather

    return gather(B, None if target.part is None else Part(target.part.runs))


def _adapter(files: Files, checkpoint: Checkpoint, plan: Plan) -> TunedAdapter:
    adapter = read_adapter(files)
    folder, modules = adapter.location, adapter.modules
    directory = base_directory(checkpoint, tied_parameters(checkpoint))
    binding = bind(adapter, directory, checkpoint.location, "Give the adapter of this model.", only_modules=True)
    homes = {name: module for module, name in binding.modules.items()}
    factors, left = {}, dict(modules)
    for target in plan.targets:
        name = homes.get(target.stored.name)
        if name is not None:
            left.pop(name, None)
            factors[target.label] = _fitting(folder, binding.factors[name], name, target)
    _require_added(folder, plan, binding.others)
    if not factors:
        raise TargetError(
            f"{folder}: none of its {len(modules)} adapted modules ({listed(sorted(modules))}) is one of the "
            f"{len(plan.targets)} matrices analysed ({plan.targets[0].module}, ...).",
            "Give the adapter of this model, or choose its modules with --roles and --layers.",
        )
    return TunedAdapter(adapter, factors, (*_adapter_notices(files.origin, plan, factors, left), *adapter.notices))


def _require_added(folder: str, plan: Plan, others: Mapping[str, str]) -> None:
    """Matrices that the adapter replaces as a whole are not what it adds to them."""
    analysed = {target.stored.name for target in plan.targets}
    replaced = [key for key, name in others.items() if name in analysed]
    if replaced:
        raise TargetError(
            f"{folder} holds whole matrices, {listed(replaced)}, beside or instead of factors.",
            "Merge it into its base, and compare with the merged checkpoint.",
        )


def _fitting(folder: str, factors: Factors, module: str, target: Target) -> Factors:
    """The factors, if they are for a matrix of that shape."""
    if factors.sides != target.sides:
        rows, columns = target.sides
        raise TargetError(
            f"{folder}: B and A of {module} have shapes {(factors.B.shape, factors.A.shape)}; for {target.tensor} of "
            f"shape {target.shape} ({rows}, r) and (r, {columns}) were expected.",
            "The adapter belongs to another model.",
        )
    return factors


def _adapter_notices(origin: Origin, plan: Plan, factors: Mapping[str, Factors], left: Mapping[str, Any]) -> list[str]:
    notices, folder = [], origin.text
    untouched = len(plan.targets) - len(factors)
    if untouched:
        notices.append(f"{folder} leaves {untouched} of the {len(plan.targets)} matrices as they are")
    if left:
        notices.append(f"{folder} also adapts {len(left)} other modules, such as {min(left)}: not looked at")
    return notices


def _require_same_type(base: Checkpoint, tuned: Checkpoint) -> None:
    kinds = [checkpoint.config.get("model_type") for checkpoint in (base, tuned)]
    if all(kinds) and kinds[0] != kinds[1]:
        raise TargetError(
            f"{tuned.location} is a {kinds[1]} model, {base.location} a {kinds[0]} model.",
            "Compare checkpoints of one architecture.",
        )


def _require_pairs(
    location: str, plan: Plan, pairs: Mapping[str, Target | None], extra: list[Target]
) -> None:  # fmt: skip
    missing = [target.label for target in plan.targets if pairs[target.label] is None]
    wrong = [
        f"{target.tensor} is {list(target.shape)} and {list(pair.shape)} there"
        for target in plan.targets
        if (pair := pairs[target.label]) is not None and pair.shape != target.shape
    ]
    faults = [
        *([f"it lacks {listed(missing, 6)}"] if missing else []),
        *([f"it has {listed([target.label for target in extra], 6)} besides"] if extra else []),
        *([f"{len(wrong)} shapes differ: {listed(wrong)}"] if wrong else []),
    ]
    if faults:
        raise TargetError(
            f"{location} is not a fine-tune of the analysed model: {'; '.join(faults)}.",
            "Compare checkpoints of one architecture, or choose what both have with --layers and --roles.",
        )
