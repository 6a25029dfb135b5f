"""The work on one matrix in the parts that different hardware does; a plain function is one part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from .ahead import Held

Item = TypeVar("Item", bound=Held)
Early = TypeVar("Early")
Rest = TypeVar("Rest")
Result = TypeVar("Result")


class Steps(ABC, Generic[Item, Early, Rest, Result]):
    """`prepare`, `beside`, `compute`, `finish`: called as a function it does them one after the other.

    On a device `compute` runs there, `beside` meanwhile on the CPU, and `finish` on the CPU when the tensors of
    `compute` have come back. What `finish` returns may share their memory: it is valid until the next result of the
    stream is asked for.
    """

    def sides(self, item: Item) -> Sequence[int]:
        """(m, n) of the matrix that comes out of `prepare`."""
        return item.stored.shape

    def prepare(self, item: Item, stored: Tensor) -> Tensor:
        """The matrix from the stored tensor, wherever it lies; done on both sides, so that nothing is copied back."""
        return stored

    @abstractmethod
    def beside(self, item: Item, W: Tensor) -> Early:
        """What needs W alone and no linear algebra, such as hashes; W lies on the CPU."""

    @abstractmethod
    def compute(self, item: Item, W: Tensor) -> tuple[Sequence[Tensor], Rest]:
        """The linear algebra, where W lies; tensors that are wanted on the CPU, and the rest as plain numbers."""

    @abstractmethod
    def finish(self, item: Item, W: Tensor, early: Early, tensors: Sequence[Tensor], rest: Rest) -> Result:
        """The result; W and the tensors lie on the CPU."""

    def __call__(self, item: Item, stored: Tensor) -> Result:
        W = self.prepare(item, stored)
        early = self.beside(item, W)
        tensors, rest = self.compute(item, W)
        return self.finish(item, W, early, [tensor.cpu() for tensor in tensors], rest)


class Whole(Steps[Item, None, Result, Result]):
    """A function of item and tensor, done where the tensor lies."""

    def __init__(self, function: Callable[[Item, Tensor], Result]) -> None:
        self._function = function

    def beside(self, item: Item, W: Tensor) -> None:
        return None

    def compute(self, item: Item, W: Tensor) -> tuple[Sequence[Tensor], Result]:
        return (), self._function(item, W)

    def finish(self, item: Item, W: Tensor, early: None, tensors: Sequence[Tensor], rest: Result) -> Result:
        return rest


class Within(Steps[Item, Early, Rest, Result]):
    """The steps for a part of each item, such as what a list wraps."""

    def __init__(self, part: Callable[[Item], Any], steps: Steps[Any, Early, Rest, Result]) -> None:
        self._part, self._steps = part, steps

    def sides(self, item: Item) -> Sequence[int]:
        return self._steps.sides(self._part(item))

    def prepare(self, item: Item, stored: Tensor) -> Tensor:
        return self._steps.prepare(self._part(item), stored)

    def beside(self, item: Item, W: Tensor) -> Early:
        return self._steps.beside(self._part(item), W)

    def compute(self, item: Item, W: Tensor) -> tuple[Sequence[Tensor], Rest]:
        return self._steps.compute(self._part(item), W)

    def finish(self, item: Item, W: Tensor, early: Early, tensors: Sequence[Tensor], rest: Rest) -> Result:
        return self._steps.finish(self._part(item), W, early, tensors, rest)


def as_steps(work: Callable[[Item, Tensor], Result]) -> Steps[Item, Any, Any, Result]:
    """The function as it is if it is made of steps."""
    return work if isinstance(work, Steps) else Whole(work)
