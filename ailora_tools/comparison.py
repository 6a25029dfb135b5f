"""The tuned side of a comparison: a checkpoint of the same architecture, or a PEFT LoRA folder on top of the base.

Pairing is done from names and headers, before any weight is read, and tells everything that does not fit at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .checkpoint.files import Files, Origin
from .checkpoint.header import Header, TensorInfo
from .checkpoint.index import Checkpoint, read_checkpoint, read_header, read_json
from .checkpoint.source import open_files
from .errors import CheckpointError, TargetError, listed
from .targets.layouts import Part
from .targets.plan import SUPPORTED_DTYPES, make_plan
from .targets.projections import Plan, Target

if TYPE_CHECKING:
    from torch import Tensor

    from .metrics.change import Difference

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MANIFEST = "ailora.json"


class Tuned(Protocol):
    """One fine-tune of the analysed model, paired matrix by matrix."""

    @property
    def origin(self) -> Origin: ...
    @property
    def kind(self) -> str: ...
    @property
    def read_bytes(self) -> int: ...
    @property
    def notices(self) -> tuple[str, ...]: ...

    def difference(self, target: Target, W: Tensor) -> Difference:
        """What it adds to W; reads the weights that this needs."""
        ...


def open_tuned(model: str | Path, checkpoint: Checkpoint, plan: Plan, options: Mapping[str, Any]) -> Tuned:
    """Pair `model` with the plan; `options` are those of `make_plan` for the base.

    Raises CheckpointError for damaged files, TargetError where the two do not belong together.
    """
    files = open_files(model)
    if ADAPTER_CONFIG in files.names():
        return _adapter(files, checkpoint, plan)
    tuned = read_checkpoint(files)
    _require_same_type(checkpoint, tuned)
    other = make_plan(tuned, quantised=True, **options)
    places = {(target.role, target.stack, target.layer): target for target in other.targets}
    pairs = {target.label: places.pop((target.role, target.stack, target.layer), None) for target in plan.targets}
    _require_pairs(tuned.location, plan, pairs, list(places.values()))
    names = {target.label: target.tensor for target in plan.targets}
    return TunedCheckpoint(tuned.files, {label: pair for label, pair in pairs.items() if pair is not None}, names)


@dataclass(frozen=True)
class TunedCheckpoint:
    """Another checkpoint; `pairs` maps the base's labels to its targets, `names` to the base's tensor names."""

    files: Files
    pairs: Mapping[str, Target]
    names: Mapping[str, str]
    kind: str = "checkpoint"

    @property
    def origin(self) -> Origin:
        return self.files.origin

    @property
    def read_bytes(self) -> int:
        tensors = {(pair.file, pair.start): pair.stop - pair.start for pair in self.pairs.values()}
        return sum(tensors.values())

    @property
    def notices(self) -> tuple[str, ...]:
        """Pairs that only match without a prefix."""
        renamed = [(self.names[label], pair.tensor) for label, pair in self.pairs.items()]
        renamed = [(name, other) for name, other in renamed if name != other]
        if not renamed:
            return ()
        first, second = renamed[0]
        return (f"{len(renamed)} tensors are named differently in {self.origin.text}: {first} is {second} there",)

    def difference(self, target: Target, W: Tensor) -> Difference:
        """W1 - W in float64 and its singular values."""
        from .linalg.spectrum import spectrum
        from .metrics.change import Difference, require_finite
        from .parts import load_projection

        pair = self.pairs[target.label]
        tuned = load_projection(self.files, pair).to(W.device)
        require_finite(tuned, f"{self.origin.text}: {pair.tensor}")
        delta = tuned.double() - W.double()
        return Difference(delta, tuned, spectrum(delta).S, low_rank=False)


@dataclass(frozen=True)
class Factors:
    """Where lora_A (r, in), lora_B (out, r) and, for DoRA, the magnitudes (out,) lie; scaling as PEFT computes it."""

    A: TensorInfo
    B: TensorInfo
    magnitude: TensorInfo | None
    scaling: float


@dataclass(frozen=True)
class TunedAdapter:
    """A LoRA folder; `factors` maps the base's labels to their factors, absent where it leaves W alone."""

    files: Files
    factors: Mapping[str, Factors]
    notices: tuple[str, ...]
    kind: str = "adapter"

    @property
    def origin(self) -> Origin:
        return self.files.origin

    @property
    def read_bytes(self) -> int:
        return sum(factor.A.nbytes + factor.B.nbytes for factor in self.factors.values())

    def difference(self, target: Target, W: Tensor) -> Difference:
        """s B A in float64 and its singular values, from the factors; the renormalised matrix with DoRA."""
        import torch

        from .linalg.spectrum import low_rank_spectrum, spectrum
        from .metrics.change import Difference

        factors = self.factors.get(target.label)
        if factors is None:
            return Difference(torch.zeros_like(W, dtype=torch.float64), W, torch.zeros(1, dtype=torch.float64), True)
        A, B = self._load(factors.A, W), _own_rows(self._load(factors.B, W), target)
        delta = (factors.scaling * B) @ A
        if factors.magnitude is not None:
            tuned = W.double() + delta
            magnitude = _own_rows(self._load(factors.magnitude, W).view(-1, 1), target)
            tuned *= magnitude / tuned.norm(dim=1, keepdim=True)
            delta = tuned - W.double()
            return Difference(delta, tuned, spectrum(delta).S, low_rank=True)
        return Difference(delta, W, low_rank_spectrum(factors.scaling * B, A).cpu(), low_rank=True)

    def _load(self, info: TensorInfo, W: Tensor) -> Tensor:
        from .checkpoint.stream import load_matrix
        from .metrics.change import require_finite

        loaded = load_matrix(self.files, ADAPTER_WEIGHTS, info).to(W.device)
        require_finite(loaded, f"{self.origin.text}: {info.name}")
        return loaded.double()


def _own_rows(B: Tensor, target: Target) -> Tensor:
    """The outputs of one projection among those of its module."""
    from .parts import gather

    return gather(B, None if target.part is None else Part(target.part.runs))


def _adapter(files: Files, checkpoint: Checkpoint, plan: Plan) -> TunedAdapter:
    folder = files.origin.text
    config = read_json(files, ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise TargetError(
            f"{files.where(ADAPTER_CONFIG)}: peft_type is {config.get('peft_type')!r}; only LORA can be compared.",
            "Merge the adapter into its base first, and compare the merged checkpoint.",
        )
    if ADAPTER_WEIGHTS not in files.names():
        raise CheckpointError(f"{folder}: {ADAPTER_WEIGHTS} is missing.", "Save the adapter as safetensors.")
    header = read_header(files, ADAPTER_WEIGHTS)
    modules = _modules(header)
    factors, left = {}, dict(modules)
    for target in plan.targets:
        name = _match(target.module, modules)
        if name is not None:
            left.pop(name, None)
            factors[target.label] = _factors(folder, modules[name], config, name, target)
    if not factors:
        raise TargetError(
            f"{folder}: none of its {len(modules)} adapted modules ({listed(sorted(modules))}) is one of the "
            f"{len(plan.targets)} matrices analysed ({plan.targets[0].module}, ...).",
            "Give the adapter of this model, or choose its modules with --roles and --layers.",
        )
    return TunedAdapter(files, factors, tuple(_adapter_notices(files.origin, checkpoint, plan, factors, left)))


def _modules(header: Header) -> dict[str, dict[str, TensorInfo]]:
    """Module path -> {"A": ..., "B": ..., "magnitude": ...}, for the key forms of old and new PEFT."""
    pattern = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B|magnitude_vector)(?:\.[^.]+)?(?:\.weight)?")
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in header.tensors.items():
        if hit := pattern.fullmatch(name):
            found.setdefault(hit[1], {})["magnitude" if hit[2] == "magnitude_vector" else hit[2]] = info
    return found


def _match(module: str, modules: Mapping[str, Any]) -> str | None:
    """The adapter's name for a module: the same path, or one that differs by a prefix on either side."""
    near = [name for name in modules if name.endswith(f".{module}") or module.endswith(f".{name}")]
    return module if module in modules else near[0] if len(near) == 1 else None


def _factors(
    folder: str, parts: Mapping[str, TensorInfo], config: Mapping[str, Any], module: str, target: Target
) -> Factors:
    A, B = parts.get("A"), parts.get("B")
    shapes = tuple(part.shape if part else None for part in (B, A))
    rows, columns = target.sides
    if A is None or B is None or shapes != ((rows, A.shape[0]), (B.shape[1], columns)):
        raise TargetError(
            f"{folder}: B and A of {module} have shapes {shapes}; for {target.tensor} of shape {target.shape} "
            f"({rows}, r) and (r, {columns}) were expected.",
            "The adapter belongs to another model.",
        )
    if any(part.dtype not in SUPPORTED_DTYPES for part in parts.values()):
        raise TargetError(f"{folder}: {module} is stored as {A.dtype}.", "Save the adapter in a float type.")
    rank = A.shape[0]
    alpha = _pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return Factors(A, B, parts.get("magnitude") if config.get("use_dora") else None, float(scaling))


def _pattern_value(pattern: object, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that the path ends with, as an expression, behind a dot."""
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _adapter_notices(
    origin: Origin, checkpoint: Checkpoint, plan: Plan, factors: Mapping[str, Factors], left: Mapping[str, Any]
) -> list[str]:
    notices, folder = [], origin.text
    untouched = len(plan.targets) - len(factors)
    if untouched:
        notices.append(f"{folder} leaves {untouched} of the {len(plan.targets)} matrices as they are")
    if left:
        notices.append(f"{folder} also adapts {len(left)} other modules, such as {min(left)}: not looked at")
    home = origin.path.resolve().parent if origin.path else None
    base = checkpoint.origin.path
    if home and (home / _MANIFEST).is_file() and not (base and base.resolve() == home):
        notices.append(
            f"{folder} was made for the residual base in {home}: against any other base its change is not what "
            "training did"
        )
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
