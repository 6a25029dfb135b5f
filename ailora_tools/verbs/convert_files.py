"""The job of a `convert`, and the two files that it writes: where each tensor goes, and what the config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.folder import Adapter, Factors
from ..adapters.peft import ADAPTER_WEIGHTS, PREFIX, AdapterModule, adapter_config, tensor_names
from ..checkpoint.header import StoredTensor, build_header
from ..output.manifest import Manifest
from ..output.spans import create
from ..surgery.all_layers import AllLayers

_CHOOSING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True)
class ConvertJob:
    """The trained adapter and that at the start, matched: `names` maps modules of the first to those of the second,
    `factors` are those of the first, `kept` its tensors that are copied, by the names that PEFT reads them under;
    `others` the layers without an adapter, if they are to have one."""

    trained: Adapter
    initial: Adapter
    manifest: Manifest
    names: Mapping[str, str]
    factors: Mapping[str, Factors]
    kept: Mapping[str, StoredTensor]
    folder: Path
    others: AllLayers | None = None

    @property
    def moved(self) -> bool:
        """Whether something was taken out of the base, so that the start has to be subtracted."""
        return self.manifest.base or self.manifest.offset

    @property
    def added(self) -> Mapping[str, tuple[int, int]]:
        """Modules of layers that the start left out -> (out, in)."""
        return self.others.sides if self.others else {}

    def sides(self, module: str) -> tuple[int, int]:
        """(out, in) of a module of the result."""
        return self.added[module] if module in self.added else self.factors[module].sides

    @property
    def base(self) -> tuple[str, str | None]:
        """The original: where it is, and its revision."""
        source = self.manifest.source
        return str(source["location"]).removeprefix("hf://"), source["revision"]


def lay_out(job: ConvertJob, tree: Path, ranks: Mapping[str, int], dtype: str) -> dict[str, int]:
    """Make the file with its header, all zeros behind it; tensor name -> where its bytes go."""
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    for module, rank in ranks.items():
        rows, columns = job.sides(module)
        name_a, name_b = tensor_names(module)
        entries += [(name_a, dtype, (rank, columns)), (name_b, dtype, (rows, rank))]
    entries += [(PREFIX + name, info.dtype, info.shape) for name, info in job.kept.items()]
    raw, header = build_header(sorted(entries), {"format": "pt", "tool": "ailora-tools convert"}, ADAPTER_WEIGHTS)
    create(tree / ADAPTER_WEIGHTS, header.file_size, raw)
    return {name: info.start for name, info in header.tensors.items()}


def config(job: ConvertJob, ranks: Mapping[str, int], scaling: float) -> dict[str, Any]:
    """As the trained one, with the new ranks and one scaling, for the original base."""
    of_start = {key: job.initial.config.get(key) for key in ("task_type", "fan_in_fan_out")}  # only PEFT saves these
    old, (base, revision) = {**of_start, **job.trained.config}, job.base
    modules = [AdapterModule(name, job.sides(name), rank, int(scaling * rank)) for name, rank in ranks.items()]
    config = adapter_config(
        modules, [], base=base, revision=revision, architectures=(), rslora=False,
        transposed=bool(old.get("fan_in_fan_out")),
    )  # fmt: skip
    kept = ("target_modules", "task_type", "modules_to_save", "bias", "exclude_modules", "layers_to_transform",
            "layers_pattern", "trainable_token_indices", "ensure_weight_tying")  # fmt: skip
    chosen = {"target_modules": job.others.target_modules} if job.others else {}
    left = _CHOOSING if job.others else ()
    return {**config, **{key: old[key] for key in kept if old.get(key) is not None and key not in left}, **chosen}
