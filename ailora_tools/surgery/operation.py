"""One planned surgery: every decision is made here, before a weight is read, from the plan and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.peft import MAGNITUDE_DTYPE, AdapterModule
from ..checkpoint.header import FACTOR_DTYPES, tensor_bytes
from ..checkpoint.index import Checkpoint
from ..methods import Method, find_method
from ..output.base import companions
from ..output.layout import ShardLayout, lay_out, widened
from ..output.manifest import fingerprint
from ..targets.as_class import as_class
from ..targets.extras import Extra, find_extras
from ..targets.linear import spelled_out
from ..targets.plan import make_plan
from ..targets.projections import Carrier, Plan, Target
from ..version import __version__
from .pooling import pooling_faults, with_group
from .settings import Settings, require_fit

if TYPE_CHECKING:
    from .decompose import Recipe


def spell_out(source: Checkpoint, settings: Settings, method: Method) -> tuple[Settings, Method, list[str]]:
    """The settings and the method with roles in the place of "all-linear", and what is left alone. Raises TargetError
    where the class has to be asked and cannot; OptionError where the method has no rule for one of the roles."""
    checkpoint = as_class(source, settings.model_class, settings.num_labels)
    linear = spelled_out(checkpoint, settings.roles, settings.rank, settings.transformers_major)
    return replace(settings, roles=linear.roles), find_method(method.name, linear.roles)[0], linear.notices


def plan_operation(source: Checkpoint, settings: Settings, method: Method, folder: Path) -> Operation:
    """What `init` does with these settings: the one derivation, for the work and for its proof.

    Raises TargetError, OptionError for what does not fit.
    """
    checkpoint = as_class(source, settings.model_class, settings.num_labels)
    plan = make_plan(
        checkpoint, settings.selection, transformers_major=settings.transformers_major,
        quantised=settings.no_base or not method.residual,
    )  # fmt: skip
    settings = with_group(settings, method, plan)
    adapted, published = [carrier.module for carrier in plan.carriers], next(iter(source.architectures), None)
    extras, about = find_extras(checkpoint, settings.beside, adapted, published)
    counted = plan.counted and settings.model_class is None  # what tests have shown is for the published class
    plan = replace(plan, counted=counted, notices=(*plan.notices, *about))
    return Operation(checkpoint, plan, method, settings, folder, extras)


@dataclass(frozen=True)
class Operation:
    """A checkpoint, what to do with which of its tensors, and where the result will lie."""

    checkpoint: Checkpoint
    plan: Plan
    method: Method
    settings: Settings
    folder: Path
    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        """OptionError that names everything in the settings that does not fit the plan."""
        require_fit(self.settings, self.method, self.plan, pooling_faults(self.settings, self.method, self.plan))

    @cached_property
    def modules(self) -> tuple[AdapterModule, ...]:
        """One adapter a module. A fused module has the sums of the ranks and of the alphas of its projections, which
        keeps the scaling alpha / r of each; rsLoRA's alpha / sqrt(r) is that of the sums, in `scaling` as in PEFT."""
        return tuple(self._adapter(carrier) for carrier in self.plan.carriers)

    def _adapter(self, carrier: Carrier) -> AdapterModule:
        count, module = len(carrier.targets), carrier.module
        rank, alpha = self.settings.rank_of(module), self.settings.alpha_of(module)
        rows, inputs = carrier.sides
        return AdapterModule(module, (rows, inputs // (self.settings.group_size or 1)), count * rank, count * alpha)

    def scaling(self, carrier: Carrier) -> float:
        """What PEFT multiplies B A with: alpha / r of the module, with rsLoRA alpha / sqrt(r) (arXiv 2312.03732)."""
        adapter = self._adapter(carrier)
        return adapter.alpha / adapter.rank**0.5 if self.settings.rslora else adapter.alpha / adapter.rank

    @cached_property
    def layouts(self) -> Mapping[str, ShardLayout]:
        """The shards of the residual base; none where the base is left alone."""
        if not self.method.residual or self.settings.no_base:
            return {}
        changed = (carrier.stored for carrier in self.plan.carriers if self._moves(carrier))
        return lay_out(self.checkpoint, changed, self.settings.base_dtype)

    def _moves(self, carrier: Carrier) -> bool:
        """Whether a part of this tensor goes into an adapter."""
        return any(self.method.rule(target.role).moved for target in carrier.targets)

    def touches(self, carrier: Carrier) -> bool:
        """Whether the base that is written holds other values in this tensor."""
        return bool(self.layouts) and self._moves(carrier)

    @property
    def offset(self) -> bool:
        """Whether a frozen adapter with -B A stands for the residual base."""
        return self.method.residual and self.settings.no_base

    @cached_property
    def companions(self) -> list[str]:
        """Files copied beside the shards."""
        return companions(self.checkpoint) if self.layouts else []

    @property
    def adapter_dtype(self) -> str:
        """As safetensors spells it."""
        return FACTOR_DTYPES[self.settings.adapter_dtype]

    def base_dtype(self, carrier: Carrier) -> str:
        """The dtype of a tensor in the residual base."""
        dtype = carrier.stored.dtype
        return widened(dtype, self.settings.base_dtype) if self._moves(carrier) else dtype

    @property
    def base_dtypes(self) -> dict[str, str]:
        """Tensor with targets in it -> its dtype in the residual base."""
        return {carrier.stored.name: self.base_dtype(carrier) for carrier in self.plan.carriers}

    @cached_property
    def nbytes(self) -> int:
        """Bytes that will be written, small text files aside."""
        sizes = [tensor_bytes(self.adapter_dtype, (sum(item.shape), item.rank)) for item in self.modules]
        factors = sum(sizes) * (1 + self.offset)
        if self.settings.dora:
            factors += sum(tensor_bytes(MAGNITUDE_DTYPE, (item.shape[0],)) for item in self.modules)
        factors += sum(tensor_bytes(extra.dtype, extra.shape) for extra in self.extras)
        copied = sum(self.checkpoint.files.size(name) for name in self.companions)
        return factors + copied + sum(layout.size for layout in self.layouts.values())

    @property
    def reads(self) -> list[tuple[str, int]]:
        """(file, bytes) of what will be read: with a residual base everything, else the targets."""
        if not self.layouts:
            copied_from = {extra.stored for extra in self.extras if extra.stored is not None}
            return [*self.plan.reads, *((stored.file, stored.nbytes) for stored in copied_from)]
        copied = [(name, self.checkpoint.files.size(name)) for name in self.companions]
        return copied + [(shard, header.file_size) for shard, header in self.checkpoint.headers.items()]

    @property
    def source_bytes(self) -> int:
        """Size of the shards and of the files that would be copied beside them."""
        return self.checkpoint.nbytes + sum(self.checkpoint.files.size(name) for name in companions(self.checkpoint))

    def job(self) -> dict[str, Any]:
        """What a resumed run must agree on, as JSON."""
        return {"version": __version__, "source": self.source(), **asdict(self.settings)}

    def source(self) -> dict[str, Any]:
        """The source as the manifest names it: origin, and size and header hash of every shard."""
        return {**self.checkpoint.origin.to_json(), "shards": fingerprint(self.checkpoint)}

    def recipe(self, carrier: Carrier, target: Target) -> Recipe:
        """What `decompose` is to do with one matrix."""
        from ..checkpoint.stream import DTYPES
        from .decompose import Recipe, matrix_name

        rule = self.method.rule(target.role)
        return Recipe(
            rule=rule.name,
            rank=self.settings.rank_of(target.module),
            scaling=self.scaling(carrier),
            adapter_dtype=DTYPES[self.adapter_dtype],
            base_dtype=DTYPES["F32" if carrier.quantised else self.base_dtype(carrier)],
            rounding=self.settings.rounding,
            seed=self.settings.seed,
            name=matrix_name(target.tensor, target.role, fused=carrier.fused),
            residual=bool(self.layouts),
            frozen=rule.frozen,
            grid=self.settings.grid,
            rounds=self.settings.rounds or 1,
            group=self.settings.group_size if rule.pooled else None,
        )
