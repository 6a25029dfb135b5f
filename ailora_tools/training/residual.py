"""Take the start of an adapter out of a model in memory, so that no second base has to be stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..adapters.folder import Adapter, open_adapter
from ..checkpoint.arithmetic import ieee
from ..checkpoint.stream import DTYPES
from ..errors import TargetError, listed
from ..linalg.recombine import NEAR, recombine
from ..matrices.gather import gather, scatter
from ..methods import RULES
from ..output.manifest import Manifest, ModuleRecord, read_manifest
from ..surgery.decompose import Recipe, matrix_name, subtract
from .base_weights import digest, own
from .folder import start_folder

if TYPE_CHECKING:
    from ..matrices.layouts import Part


@dataclass(frozen=True, repr=False)
class Residualized:
    """What was taken out of which model; `undo` restores the original weights bit for bit.

    exact: whether every weight is now, bit for bit, the residual that `init` wrote, by its hashes; None where there is
    nothing to compare with: `init --no-base` wrote none, or the model is in another dtype.
    """

    weights: tuple[Tensor, ...]
    originals: tuple[Tensor, ...]
    exact: bool | None = None

    def __repr__(self) -> str:
        return f"<Residualized {len(self.weights)} weights, exact: {self.exact}>"

    @torch.no_grad()
    def undo(self) -> None:
        """The original weights again. Unload or merge the adapter first: it would count twice."""
        for weight, original in zip(self.weights, self.originals, strict=True):
            weight.copy_(original)


@dataclass(frozen=True)
class _Step:
    """One projection of the model and what is known of it."""

    record: ModuleRecord
    weight: Tensor
    part: Part | None
    W: Tensor


def residualize(model: nn.Module, adapter_dir: str | Path) -> Residualized:
    """Subtract s B0 A0 of `adapter_dir` (`.../ailora_init`) from the weights of `model`, before PEFT wraps it.

    `model` is the original model in any float dtype, on any device. The subtraction is done on the CPU, in float64 and
    with one rounding, as `init` does it: in a 16-bit dtype of the source the weights become bit for bit the residual
    that `init` writes, wherever either ran. In float32 another kind of CPU may sum a product in another order and round
    one entry in about 10^9 the other way; `exact` of the result says which it is. From a folder of `init --no-base`
    16-bit weights are rounded stochastically with its seed. Needs the memory of the touched matrices for `undo`.

    Raises TargetError, and changes nothing, where a module is missing or quantised, where the weights are those of
    another model, or where they are residualised already; NumericalError where their dtype cannot hold the residual.

    >>> taken = residualize(original, "start/ailora_init")
    >>> taken.exact
    True
    >>> taken.undo()
    """
    with ieee():
        return _residualize(model, start_folder(adapter_dir))


def _residualize(model: nn.Module, folder: Path) -> Residualized:
    manifest, adapter = read_manifest(folder.parent), open_adapter(folder)
    steps = _find(model, manifest, folder)
    _require_original(steps, adapter, manifest, folder)
    weights = {id(step.weight): step.weight for step in steps}
    originals = tuple(weight.detach().to("cpu", copy=True) for weight in weights.values())
    taken = Residualized(tuple(weights.values()), originals)
    same = []
    try:
        for step in steps:
            W = _residual(step, adapter, manifest)
            same.append(_is_written(W, step.record) if manifest.base else None)
            _put(step, W)
    except BaseException:  # all of them or none
        taken.undo()
        raise
    return replace(taken, exact=None if None in same else all(same))


def _is_written(W: Tensor, record: ModuleRecord) -> bool | None:
    """Whether a residual is the one that `init` wrote; None where that is in another dtype."""
    return digest(W) == record.base_sha256 if W.dtype == DTYPES.get(record.base_dtype) else None


def _put(step: _Step, W: Tensor) -> None:
    """W (out, in) into its place in the model."""
    if step.part is None:
        step.weight.copy_(W)
    else:
        scatter(step.weight.data, step.part, W.to(step.weight))


def _find(model: nn.Module, manifest: Manifest, folder: Path) -> list[_Step]:
    """The weights in memory; every module that does not fit at once."""
    modules = dict(model.named_modules())
    steps, faults = [], []
    for record in manifest.modules:
        found = modules.get(record.module)
        weight = getattr(found, "weight", None)
        part = record.part
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2:
            faults.append(f"{record.module} is {'missing' if found is None else type(found).__name__}")
        elif (shape := _shape(weight, part)) != (record.outputs, record.shape[1]):
            faults.append(f"{record.module} has shape {shape}, expected {(record.outputs, record.shape[1])}")
        else:
            steps.append(_Step(record, weight, part, gather(weight.detach(), part)))
    if faults:
        raise TargetError(
            f"{folder} does not fit the model: {listed(faults)}.",
            "Give the model itself, in a float dtype, before PEFT wraps it; for a quantised one `init --no-base` "
            "writes a frozen adapter instead.",
        )
    return steps


def _shape(weight: Tensor, part: Part | None) -> tuple[int, int]:
    rows, columns = weight.shape
    return (columns, rows) if part is not None and part.transposed else (rows, columns)


def _require_original(steps: Sequence[_Step], adapter: Adapter, manifest: Manifest, folder: Path) -> None:
    """By hash where the dtype is the source's, else by how often s B A is in W."""
    faults: dict[str, list[str]] = {}
    for step in steps:
        if digest(step.W) == step.record.source_sha256 or not RULES[step.record.rule].moved:
            continue
        A, B = own(step.record, adapter, manifest)
        same_dtype = step.W.dtype == DTYPES.get(step.record.dtype)
        share = recombine(step.W.cpu(), A, B, step.record.scaling, None, step.record.overlap).share
        if digest(step.W) == step.record.base_sha256:
            faults.setdefault("is residualised already", []).append(step.record.module)
        elif abs(share) < NEAR:
            faults.setdefault("is residualised already, or of another model", []).append(step.record.module)
        elif same_dtype or abs(share - 1) > NEAR:
            faults.setdefault("is of another model, or was changed", []).append(step.record.module)
    if faults:
        told = "; ".join(f"{listed(names)} {what}" for what, names in faults.items())
        raise TargetError(
            f"{folder} does not fit the model: {told}.", "Load the original model that the manifest names."
        )


def _residual(step: _Step, adapter: Adapter, manifest: Manifest) -> Tensor:
    record = step.record
    W = step.W.cpu()  # where `init` ran does not matter, but GPUs without float64 are many
    A, B = own(record, adapter, manifest)
    recipe = Recipe(
        rule=record.rule, rank=record.rank, scaling=record.scaling, adapter_dtype=A.dtype, base_dtype=step.W.dtype,
        rounding=record.rounding, seed=int(manifest.settings["seed"]),
        name=matrix_name(record.tensor, record.role, fused=record.part is not None),
    )  # fmt: skip
    if record.rounding == "none" and step.W.dtype in (torch.bfloat16, torch.float16):
        return subtract(W, A, B, recipe, "stochastic")
    return subtract(W, A, B, recipe, record.rounding)
