"""A LoRA folder as PEFT and the trainers on top of it save it: which modules, which factors, which scaling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.gate import INDEX_BYTES, Factor, Rank, View, read_json, typed
from ..checkpoint.header import FLOATS, Header, StoredTensor, quoted
from ..checkpoint.index import read_header
from ..checkpoint.source import user_path
from ..errors import CheckpointError, TargetError, listed
from .expressions import require_matchable
from .peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LARGEST_SCALING, PREFIX, pattern_value, scaling_of

if TYPE_CHECKING:
    from torch import Tensor

_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B|magnitude_vector)(?:\.(?!bias$)[^.]+)?(?:\.weight)?")
# Settings of LoRA in PEFT under which W + s B A is not what the module computes.
_VARIANTS = ("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
             "alora_invocation_tokens", "layer_replication", "target_parameters")  # fmt: skip


class _Settings(View):
    """The fields of adapter_config.json that are used here, as PEFT knows them; null stands for the default."""

    r: Rank | None = None
    lora_alpha: Factor = 8.0
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Factor] | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    fan_in_fan_out: bool | None = None
    lora_dropout: float | None = None
    bias: str | None = None
    task_type: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Factors:
    """Where lora_A (r, in), lora_B (out, r) and, for DoRA, the magnitudes (out,) lie; scaling as PEFT computes it."""

    A: StoredTensor
    B: StoredTensor
    magnitude: StoredTensor | None
    scaling: float

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def sides(self) -> tuple[int, int]:
        """(out, in) of the module."""
        return self.B.shape[0], self.A.shape[1]


@dataclass(frozen=True)
class Adapter:
    """The folder: adapter_config.json, the factors by module path, and every other tensor (`modules_to_save`, biases)
    by the name it has in the model."""

    files: Files
    config: Mapping[str, Any]
    modules: Mapping[str, Factors]
    others: Mapping[str, StoredTensor]

    @property
    def location(self) -> str:
        return self.files.origin.text

    @property
    def dora(self) -> bool:
        return bool(self.config.get("use_dora"))

    def load(self, stored: StoredTensor) -> Tensor:
        """One tensor of the file, as stored; NumericalError if it holds NaN or infinity."""
        from ..checkpoint.stream import load_matrix
        from ..linalg.finite import require_finite

        tensor = load_matrix(self.files, stored)
        require_finite(tensor, f"{self.location}: {stored.name}", "Its training diverged: use an earlier checkpoint.")
        return tensor


def open_adapter(folder: str | Path) -> Adapter:
    """A folder with an adapter in it, or in the only one of its subfolders that has one.

    Raises CheckpointError where there is none, or where its scaling is no usable number; TargetError for another kind
    than LoRA.
    """
    path = user_path(folder, "ADAPTER")
    if not (path / ADAPTER_CONFIG).is_file():
        inner = sorted(below.parent for below in path.glob(f"*/{ADAPTER_CONFIG}")) if path.is_dir() else []
        if len(inner) != 1:
            found = f"there are several below it: {listed([str(one) for one in inner])}" if inner else "none is there"
            raise CheckpointError(
                f"{path}: expected an adapter ({ADAPTER_CONFIG}), but {found}.",
                "Give the folder that the trainer saved the adapter to, such as output/checkpoint-100.",
            )
        path = inner[0]
    return read_adapter(LocalFiles(path))


def read_adapter(files: Files) -> Adapter:
    """The adapter in the root of `files`."""
    config = read_config(files)
    if config.get("peft_type") != "LORA":
        raise TargetError(
            f"{files.where(ADAPTER_CONFIG)}: peft_type is {quoted(config.get('peft_type'))}; only LORA is known.",
            "Merge the adapter into its base first, and work with the merged checkpoint.",
        )
    variants = [name for name in _VARIANTS if config.get(name)]
    if variants:
        raise TargetError(
            f"{files.where(ADAPTER_CONFIG)}: {listed(variants)} is set; W + s B A is not what such a module computes.",
            "Merge the adapter into its base with PEFT, and work with the merged checkpoint.",
        )
    if ADAPTER_WEIGHTS not in files.names():
        raise CheckpointError(f"{files.origin.text}: {ADAPTER_WEIGHTS} is missing.", "Save the adapter as safetensors.")
    header = read_header(files, ADAPTER_WEIGHTS)
    parts, others = _sorted_out(header)
    modules = {module: _factors(files.origin.text, held, config, module) for module, held in parts.items()}
    return Adapter(files, config, modules, others)


def read_config(files: Files) -> dict[str, Any]:
    """adapter_config.json; CheckpointError if a field that is used here is not of PEFT's type, TargetError for an
    expression that cannot be matched in bounded time."""
    config = read_json(files, ADAPTER_CONFIG, INDEX_BYTES)
    typed(config, files.where(ADAPTER_CONFIG), _Settings, "Save the adapter again, or correct the field.")
    for field in ("rank_pattern", "alpha_pattern"):
        try:
            require_matchable(config.get(field) or ())
        except TargetError as error:
            raise TargetError(f"{files.where(ADAPTER_CONFIG)}: {field}: {error.problem}", error.hint) from None
    return config


def match_module(module: str, names: Mapping[str, Any]) -> str | None:
    """The adapter's name for a module: the same path, or one that differs by a prefix on either side."""
    near = [name for name in names if name.endswith(f".{module}") or module.endswith(f".{name}")]
    return module if module in names else near[0] if len(near) == 1 else None


def _sorted_out(header: Header) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """Module path -> {"A": ..., "B": ..., "magnitude": ...}, for the key forms of old and new PEFT; and the rest."""
    found: dict[str, dict[str, StoredTensor]] = {}
    others = {}
    for name, stored in header.tensors.items():
        if hit := _KEY.fullmatch(name):
            found.setdefault(hit[1], {})["magnitude" if hit[2] == "magnitude_vector" else hit[2]] = stored
        else:
            others[name.removeprefix(PREFIX)] = stored
    return found, others


def _factors(folder: str, parts: Mapping[str, StoredTensor], config: Mapping[str, Any], module: str) -> Factors:
    A, B = parts.get("A"), parts.get("B")
    if A is None or B is None or len(A.shape) != 2 or len(B.shape) != 2 or A.shape[0] != B.shape[1] or 0 in A.shape:
        shapes = [part.shape if part else None for part in (B, A)]
        raise TargetError(
            f"{folder}: B and A of {module} have shapes {shapes[0]} and {shapes[1]}; expected (out, r) and (r, in).",
            "Save the adapter of a model whose LoRA modules are linear layers, without sharding.",
        )
    if any(part.dtype not in FLOATS for part in parts.values()):
        raise TargetError(f"{folder}: {module} is stored as {A.dtype}.", "Save the adapter in a float type.")
    if config.get("use_dora") and "magnitude" not in parts:
        raise TargetError(
            f"{folder}: use_dora is set, but {module} has no lora_magnitude_vector.",
            "The file is incomplete: save the adapter again.",
        )
    rank = A.shape[0]
    alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    scaling = scaling_of(alpha, rank, bool(config.get("use_rslora")))
    if scaling is None:
        raise CheckpointError(
            f"{folder}/{ADAPTER_CONFIG}: alpha of {module} is {quoted(alpha)} at rank {rank}; the scaling must be a "
            f"number above 0 and at most {LARGEST_SCALING:,.0f}.",
            "Set lora_alpha (or alpha_pattern) to what the adapter was trained with.",
        )
    return Factors(A, B, parts.get("magnitude") if config.get("use_dora") else None, scaling)
