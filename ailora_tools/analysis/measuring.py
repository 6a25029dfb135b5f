"""The work of `analyze` on one stored tensor, in steps: a device finds spectra while the CPU looks at elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..checkpoint.steps import Steps
from ..errors import NumericalError
from ..matrices.dequantise import dequantise
from ..matrices.gather import gather
from ..targets.projections import Carrier, Target
from .document import AnalysisJob
from .measure import Elements, Spectra, decompose_spectra, look_at_elements, put_together

Records = dict[str, dict[str, Any]]  # by the label of the target


class Measuring(Steps[Carrier, list[Elements | NumericalError], list[Spectra | NumericalError], Records]):
    """A matrix that cannot be measured has {"skipped": reason} for a record."""

    def __init__(self, job: AnalysisJob) -> None:
        self._job = job

    def sides(self, item: Carrier) -> Sequence[int]:
        return item.sides

    def prepare(self, item: Carrier, stored: Tensor) -> Tensor:
        return dequantise(stored, item.quantised, self._job.checkpoint.files)

    def beside(self, item: Carrier, W: Tensor) -> list[Elements | NumericalError]:
        return [self._elements(target, gather(W, target.part)) for target in item.targets]

    def compute(self, item: Carrier, W: Tensor) -> tuple[Sequence[Tensor], list[Spectra | NumericalError]]:
        return (), [self._spectra(target, gather(W, target.part)) for target in item.targets]

    def finish(
        self, item: Carrier, W: Tensor, early: list[Elements | NumericalError], tensors: Sequence[Tensor],
        rest: list[Spectra | NumericalError],
    ) -> Records:  # fmt: skip
        parts = zip(item.targets, early, rest, strict=True)
        return {target.label: _record(target, elements, spectra) for target, elements, spectra in parts}

    def _heads(self, target: Target) -> int | None:
        return self._job.heads.count(target.role, target.shape) if self._job.heads else None

    def _elements(self, target: Target, W: Tensor) -> Elements | NumericalError:
        try:
            return look_at_elements(W, target.tensor, target.role, self._heads(target))
        except NumericalError as error:
            return error

    def _spectra(self, target: Target, W: Tensor) -> Spectra | NumericalError:
        changes = [lambda W, other=other: other.difference(target, W) for other in self._job.tuned]
        try:
            return decompose_spectra(W, target.tensor, target.role, self._heads(target), self._job.rank, changes)
        except NumericalError as error:
            return error


def _record(target: Target, elements: Elements | NumericalError, spectra: Spectra | NumericalError) -> dict[str, Any]:
    for part in (elements, spectra):
        if isinstance(part, NumericalError):
            return {"skipped": part.problem}
    assert isinstance(elements, Elements)
    assert isinstance(spectra, Spectra)
    return put_together(target.shape, elements, spectra)
