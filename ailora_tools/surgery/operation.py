"""One planned surgery: every decision is made here, before a weight is read, from the plan and the settings."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.peft import MAGNITUDE_DTYPE, AdapterModule, adapter_config
from ..checkpoint.header import tensor_bytes
from ..checkpoint.index import Checkpoint
from ..methods import RULES, Method
from ..metrics.motion import role_motion
from ..output.base import ShardLayout, companions, keep_layout, recast_layout, restate_total
from ..output.card import CardFacts, model_card
from ..output.manifest import Manifest, ModuleRecord, fingerprint
from ..targets.architectures import BY_MODEL_TYPE, PROVEN_WITH
from ..targets.module_names import installed_transformers, installed_transformers_major
from ..targets.module_tree import ModuleCheck
from ..targets.plan import target_modules
from ..targets.projections import Plan, Target, Unit
from .settings import ADAPTER_DTYPES, Settings, require_fit

if TYPE_CHECKING:
    from .decompose import Numbers, Recipe


@dataclass(frozen=True)
class Operation:
    """A checkpoint, what to do with which of its tensors, and where the result will lie."""

    checkpoint: Checkpoint
    plan: Plan
    method: Method
    settings: Settings
    folder: Path

    def __post_init__(self) -> None:
        """OptionError that names everything in the settings that does not fit the plan."""
        require_fit(self.settings, self.method, self.plan)

    @cached_property
    def modules(self) -> tuple[AdapterModule, ...]:
        """One adapter a module. A fused module has the sums of the ranks and of the alphas of its projections, which
        keeps the scaling alpha / r of each; rsLoRA's alpha / sqrt(r) is that of the sums, in `scaling` as in PEFT."""
        return tuple(self._adapter(unit) for unit in self.plan.units)

    def _adapter(self, unit: Unit) -> AdapterModule:
        count, module = len(unit.targets), unit.module
        rank, alpha = self.settings.rank_of(module), self.settings.alpha_of(module)
        return AdapterModule(module, unit.sides, count * rank, count * alpha)

    def scaling(self, unit: Unit) -> float:
        """What PEFT multiplies B A with: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
        adapter = self._adapter(unit)
        return adapter.alpha / adapter.rank**0.5 if self.settings.rslora else adapter.alpha / adapter.rank

    @cached_property
    def layouts(self) -> Mapping[str, ShardLayout]:
        """The shards of the residual base; none where the base is left alone."""
        if not self.method.residual or self.settings.no_base:
            return {}
        dtypes: dict[str, dict[str, str]] = {shard: {} for shard in self.checkpoint.headers}
        for unit in filter(self._moves, self.plan.units):
            dtypes[unit.file][unit.tensor] = self.base_dtype(unit)
        lay_out = keep_layout if self.settings.base_dtype == "keep" else recast_layout
        return {shard: lay_out(header, dtypes[shard]) for shard, header in self.checkpoint.headers.items()}

    def _moves(self, unit: Unit) -> bool:
        """Whether a part of this tensor goes into an adapter."""
        return any(RULES[self.method.rules[target.role]].moved for target in unit.targets)

    def touches(self, unit: Unit) -> bool:
        """Whether the base that is written holds other values in this tensor."""
        return bool(self.layouts) and self._moves(unit)

    @property
    def offset(self) -> bool:
        """Whether a frozen adapter with -B A stands for the residual base."""
        return self.method.residual and self.settings.no_base

    @cached_property
    def companions(self) -> list[str]:
        """Files copied beside the shards."""
        return companions(self.checkpoint) if self.layouts else []

    @cached_property
    def nbytes(self) -> int:
        """Bytes that will be written, small text files aside."""
        dtype = ADAPTER_DTYPES[self.settings.adapter_dtype]
        factors = sum(tensor_bytes(dtype, (sum(item.shape), item.rank)) for item in self.modules) * (1 + self.offset)
        if self.settings.dora:
            factors += sum(tensor_bytes(MAGNITUDE_DTYPE, (item.shape[0],)) for item in self.modules)
        copied = sum(self.checkpoint.files.size(name) for name in self.companions)
        return factors + copied + sum(layout.size for layout in self.layouts.values())

    @property
    def reads(self) -> list[tuple[str, int]]:
        """(file, bytes) of what will be read: with a residual base everything, else the targets."""
        if not self.layouts:
            return self.plan.reads
        copied = [(name, self.checkpoint.files.size(name)) for name in self.companions]
        return copied + [(shard, header.file_size) for shard, header in self.checkpoint.headers.items()]

    @property
    def source_bytes(self) -> int:
        """Size of the shards and of the files that would be copied beside them."""
        return self.checkpoint.nbytes + sum(self.checkpoint.files.size(name) for name in companions(self.checkpoint))

    def job(self) -> dict[str, Any]:
        """What a resumed run must agree on, as JSON."""
        return {"version": version("ailora-tools"), "source": self.source(), **asdict(self.settings)}

    def source(self) -> dict[str, Any]:
        """The source as the manifest names it: origin, and size and header hash of every shard."""
        return {**self.checkpoint.origin.to_json(), "shards": fingerprint(self.checkpoint)}

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that config.json names, if it does."""
        named = self.checkpoint.config.get("architectures")
        return tuple(str(name) for name in named) if isinstance(named, list) else ()

    def note(self) -> dict[str, str]:
        """Provenance for the adapter's own metadata, in case it is separated from the manifest."""
        settings = self.settings
        text = {"tool": "ailora-tools", "version": version("ailora-tools"), "method": settings.method}
        return {**text, "rank": str(settings.rank), "seed": str(settings.seed)}

    def recipe(self, unit: Unit, target: Target) -> Recipe:
        """What `decompose` is to do with one matrix."""
        from ..checkpoint.stream import DTYPES
        from .decompose import Recipe

        return Recipe(
            rule=self.method.rules[target.role],
            rank=self.settings.rank_of(target.module),
            scaling=self.scaling(unit),
            adapter_dtype=DTYPES[ADAPTER_DTYPES[self.settings.adapter_dtype]],
            base_dtype=DTYPES["F32" if unit.quantised else self.base_dtype(unit)],
            rounding=self.settings.rounding,
            seed=self.settings.seed,
            name=target.tensor if target.part is None else f"{target.tensor} ({target.role})",
            residual=bool(self.layouts),
            frozen_b=RULES[self.method.rules[target.role]].frozen_b,
        )

    def base_dtype(self, unit: Unit) -> str:
        """The dtype of a tensor in the residual base; never narrower than in the source."""
        widened = self.settings.base_dtype == "float32" and unit.dtype in ("F16", "BF16") and self._moves(unit)
        return "F32" if widened else unit.dtype

    def record(
        self, unit: Unit, target: Target, numbers: Numbers, before: str, after: str, adapter: str
    ) -> ModuleRecord:
        """The manifest's entry for one projection; the last three are SHA-256 of W, W_res, and the module's A and B."""
        return ModuleRecord(
            module=target.module,
            tensor=target.tensor,
            file=target.file,
            role=target.role,
            layer=target.layer,
            stack=target.stack,
            shape=target.shape,
            dtype=target.dtype,
            base_dtype=self.base_dtype(unit),
            part=target.part,
            outputs=unit.sides[0],
            rule=self.method.rules[target.role],
            rank=self.settings.rank_of(target.module),
            alpha=self.settings.alpha_of(target.module),
            scaling=self.scaling(unit),
            source_sha256=before,
            base_sha256=after,
            adapter_sha256=adapter,
            **asdict(numbers),
        )

    def adapter_config(self, short: bool) -> dict[str, Any]:
        """PEFT's adapter_config.json; the base it names is the residual one, or the source if that is untouched.

        short: write last names such as q_proj into target_modules, where they match no other module; else full paths.
        """
        paths = sorted(unit.module for unit in self.plan.units)
        origin = self.checkpoint.origin
        original = origin.location if origin.path is None else str(origin.path.resolve())
        return adapter_config(
            self.modules,
            target_modules(self.plan, self.checkpoint) if short else paths,
            base=str(self.folder) if self.layouts else original,
            revision=None if self.layouts else origin.revision,
            architectures=self.architectures,
            rslora=self.settings.rslora,
            dora=self.settings.dora,
            bias=self.settings.bias,
            transposed=any(unit.transposed for unit in self.plan.units),
        )

    def card(self, records: Sequence[ModuleRecord]) -> str:
        """README.md of the folder."""
        settings = self.settings
        return model_card(
            CardFacts(
                name=self.folder.name,
                method=self.method,
                ranks=sorted({record.rank for record in records}),
                alphas=sorted({record.alpha for record in records}),
                seed=settings.seed,
                source=self.checkpoint.location,
                has_base=bool(self.layouts),
                has_offset=self.offset,
                architectures=self.architectures,
                dora=settings.dora,
                rslora=settings.rslora,
                bias=settings.bias,
            ),
            records,
        )

    def module_check(self) -> ModuleCheck:
        """The question to the real class. Not asked if the user named the tensors or wants another transformers, nor
        where the tests of this release have asked it of the very class in the installed transformers."""
        settings = self.settings
        if settings.q_tensor or settings.v_tensor:
            return ModuleCheck.skipped("the tensors were named by hand")
        if settings.transformers_major != installed_transformers_major():
            return ModuleCheck.skipped(
                f"they are for transformers {settings.transformers_major}, not the installed one"
            )
        if self.plan.model_type in BY_MODEL_TYPE and installed_transformers().startswith(PROVEN_WITH):
            return ModuleCheck.proven()
        modules = [unit.module for unit in self.plan.units]
        targets = target_modules(self.plan, self.checkpoint)
        return ModuleCheck(self.checkpoint.config, modules, targets, self.checkpoint.location)

    def update_index(self, tree: Path) -> None:
        """Wider tensors change the total that the index states; everything else in it stays."""
        if self.layouts:
            restate_total(tree, self.checkpoint, {unit.tensor: self.base_dtype(unit) for unit in self.plan.units})

    def manifest(
        self, records: Sequence[ModuleRecord], files: Mapping[str, Mapping[str, Any]], device: str
    ) -> Manifest:
        """The proof: modules in reading order and the hash of every file."""
        tool = {"ailora_tools": version("ailora-tools"), "torch": version("torch"), "python": platform.python_version()}
        return Manifest(
            tool={**tool, "device": device},
            source=self.source(),
            settings=asdict(self.settings),
            base=bool(self.layouts),
            offset=self.offset,
            motion=role_motion((record.role, record.motion) for record in records),
            modules=tuple(records),
            files=files,
            notices=self.plan.notices,
        )
