"""LoRA layers of PEFT that compute W x + s (B A - B0 A0) x: the start is taken out where its adapter is computed.

Base layers are not touched, and nothing here is an adapter of its own, so that no `set_adapter`, resume or copy of an
adapter can lose it. Both products take the same way, in the same dtype, from the same input, and meet before they are
added to W x: at the start their difference is zero to the bit, under autocast and above quantised weights, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, cast
from weakref import WeakSet

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..errors import TargetError
from .layers import in_memory

ALIKE = 0.2  # cosine between the factors and those at the start, as `convert` has it; random ones are far below

_FAR = "if it was trained from the start and moved far, name it in `attach(..., adapters=[...])`."
_OTHER = f"Other factors were loaded into it. Load them under a name of their own; {_FAR}"
_COMBINED = f"It is made of others. Make plain LoRAs of them by `convert` before you combine them; {_FAR}"

Compared = Sequence[tuple[Tensor, Tensor]]  # of every module: a factor now, and at the start


class Start(nn.Linear):
    """A linear module of PEFT that knows what it was at the start, which is no parameter and no buffer: it is neither
    saved nor sent around. own: whether its adapter comes from there. seen: whether that was found out since its
    numbers were last loaded. loaded: whether they came out of a file, and not from other adapters in memory."""

    start: Tensor
    own: bool
    seen: bool
    loaded: bool

    @classmethod
    def put(cls, module: nn.Module, start: Tensor) -> Self:
        """Make `module` such a one, in place. It keeps its parameters, its hooks and its name."""
        module.__class__ = cls
        held = cast(Self, module)
        held.start, held.own, held.seen, held.loaded = start, False, False, False
        held._follow()
        return held

    def at_start(self, x: Tensor) -> Tensor:
        """What this module would make of x at the start."""
        return F.linear(x, self.start.to(self.weight.device, self.weight.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow()
        return self

    def _follow(self) -> None:
        """To the device of the weight and through every rounding of it, so that the two stay equal."""
        if not self.weight.is_meta:
            self.start = self.start.to(self.weight.device, self.weight.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Other numbers may be of another adapter. Sharded ones cannot be looked at, and are taken for the same."""
        super()._load_from_state_dict(*args, **kwargs)
        self.seen = self.seen and in_memory(self.weight) is None
        self.loaded = True


class StartA(Start):
    """A x and A0 x, where the adapter comes from the start."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """x (..., in); (..., r), or two of it."""
        return (super().forward(x), self.at_start(x)) if self.own else super().forward(x)


class StartB(Start):
    """B A x - B0 A0 x, where lora_A gives both."""

    def forward(self, u: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """(..., r), or two of it; (..., out)."""
        if isinstance(u, Tensor):
            return super().forward(u)
        now, then = u
        return super().forward(now) - self.at_start(then)


class Family:
    """The layers of one model that one start is attached to: where an adapter comes from is seen in all of them. told:
    the adapters that come from it by the word of the user."""

    def __init__(self) -> None:
        self.layers: WeakSet[Attached] = WeakSet()
        self.told: set[str] = set()

    def __deepcopy__(self, memo: dict[int, object]) -> Family:
        """Copied layers join it by themselves (`Attached.__setstate__`)."""
        memo[id(self)] = copied = Family()
        copied.told |= self.told
        return copied

    def settle(self, name: str) -> bool:
        """Whether the adapter comes from the start; its modules know it from now on."""
        pairs = [pair for layer in self.layers if (pair := layer.pair(name))]
        own = name in self.told or _seen_to_come(name, pairs)
        if own and not (name in self.told or any(A.loaded for A, _ in pairs) or self._is_copy(name)):
            raise unclear(name, _COMBINED)
        for module in (module for pair in pairs for module in pair):
            if module.own and not own:
                raise unclear(name, _OTHER)
            module.own, module.seen = own, True
        return own

    def _is_copy(self, name: str) -> bool:
        """Whether the factors are those of the start, or of another adapter that comes from it."""
        others = {other for layer in self.layers for other in cast(nn.ModuleDict, layer.lora_A)} - {name}
        return any(all(layer.is_copy(name, other) for layer in self.layers) for other in (None, *others))


class Attached(nn.Module):
    """What `attached_class` puts before a LoRA layer of PEFT. starts: A0 (r, in) and B0 (out, r)."""

    family: Family
    starts: tuple[Tensor, Tensor]

    def join(self, family: Family, starts: tuple[Tensor, Tensor]) -> None:
        """Belong to `family`, with all adapters that are there."""
        self.family, self.starts = family, starts
        family.layers.add(self)
        for name in cast(nn.ModuleDict, self.lora_A):
            self.adopt(name)
            for module in self.pair(name) or ():
                module.seen, module.loaded = False, True

    def pair(self, name: str) -> tuple[StartA, StartB] | None:
        """A and B of an adapter, where this layer has it in the shapes of the start."""
        A, B = (getattr(self, kind)._modules.get(name) for kind in ("lora_A", "lora_B"))
        return (A, B) if isinstance(A, StartA) and isinstance(B, StartB) else None

    def adopt(self, name: str) -> None:
        """Have an adapter looked at. One of another rank cannot come from the start, and stays what it is."""
        A, B = (getattr(self, kind)[name] for kind in ("lora_A", "lora_B"))
        if type(A) is type(B) is nn.Linear and A.out_features == len(self.starts[0]):
            StartA.put(A, self.starts[0])
            StartB.put(B, self.starts[1])

    def is_copy(self, name: str, other: str | None) -> bool:
        """Whether A and B are those of another adapter of the start, or, without one, those at the start."""
        one, mate = self.pair(name), self.pair(other) if other else None
        if one is None or (other and mate is None):
            return one is None
        sources = [module.weight if module.own else None for module in mate] if mate else [m.start for m in one]
        return all(
            source is not None and torch.equal(module.weight, source.to(module.weight.device, module.weight.dtype))
            for module, source in zip(one, sources, strict=True)
        )

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT makes the modules of an adapter here, such as those of TRL's copy for reference."""
        super().update_layer(adapter_name, *args, **kwargs)  # type: ignore[misc]
        self.adopt(adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As PEFT; adapters that are new are looked at before."""
        for name in cast(nn.ModuleDict, self.lora_A):
            self.comes_from_start(name)
        return super().forward(*args, **kwargs)

    def comes_from_start(self, name: str) -> bool:
        """Found out once for every adapter, and again when other numbers were loaded. One whose B is zero adds nothing
        and may yet be filled: it waits."""
        pair = self.pair(name)
        if pair is None:
            return False
        A, B = pair
        if not (A.seen and B.seen) and (A.own or in_memory(B.weight) is None or bool(torch.any(B.weight != 0))):
            A.own = B.own = self.family.settle(name)  # also where this layer is a replica of the one in the family
        return A.own

    def get_delta_weight(self, adapter: str) -> Tensor:
        """s (B A - B0 A0), in the shape of the stored W; what PEFT merges and unmerges."""
        delta: Tensor = super().get_delta_weight(adapter)  # type: ignore[misc]
        pair = self.pair(adapter)
        if pair is None or not self.comes_from_start(adapter):
            return delta
        wide = torch.promote_types(delta.dtype, torch.float32)
        A, B, A0, B0 = (one.to(delta.device, wide) for one in (*(m.weight for m in pair), *(m.start for m in pair)))
        change = (B @ A - B0 @ A0) * cast(dict[str, float], self.scaling)[adapter]
        return (change.T if getattr(self, "fan_in_fan_out", False) else change).to(delta.dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.family.layers.add(self)


_classes: dict[type[nn.Module], type[Attached]] = {}


def attached_class(layer: type[nn.Module]) -> type[Attached]:
    """The class of a LoRA layer of PEFT with `Attached` before it."""
    if layer not in _classes:
        _classes[layer] = type(f"Attached{layer.__name__}", (Attached, layer), {"__module__": __name__})
    return _classes[layer]


def _seen_to_come(name: str, pairs: Sequence[tuple[StartA, StartB]]) -> bool:
    A, B = (list(_compared(name, (pair[side] for pair in pairs))) for side in (0, 1))
    return comes_from_start(name, A, B)


def comes_from_start(name: str, A: Compared, B: Compared) -> bool:
    """By the cosines of A and of B over all modules; TargetError where the two do not agree."""
    cosines = [_cosine(factors) for factors in (A, B)]
    if cosines[0] >= ALIKE and cosines[1] <= -ALIKE:
        raise unclear(name, "It is the frozen adapter of the folder: leave it out, its part is taken out already.")
    alike = [cosine >= ALIKE for cosine in cosines]
    if any(alike) != all(alike):
        told = f"The cosines of its A and B with those at the start are {cosines[0]:.2f} and {cosines[1]:.2f}."
        raise unclear(name, f"{told} An adapter that `convert` made belongs on the original alone.")
    return all(alike)


def unclear(name: str, hint: str) -> TargetError:
    """For an adapter with which no right number can be computed."""
    return TargetError(f"adapter {name!r}: it cannot be told that it comes from the start that is attached.", hint)


def _compared(name: str, modules: Iterator[Start]) -> Iterator[tuple[Tensor, Tensor]]:
    for module in modules:
        weight = in_memory(module.weight)
        if weight is None or weight.shape != module.start.shape:
            raise unclear(name, "It came after `attach` and is sharded now: call `attach` once more before that.")
        yield weight, module.start


def _cosine(factors: Compared) -> float:
    dot = now = then = 0.0
    for one, other in ((one.double(), other.detach().cpu().double()) for one, other in factors):
        dot += float((one * other).sum())
        now, then = now + float(one.square().sum()), then + float(other.square().sum())
    return dot / (now * then) ** 0.5 if now and then else 0.0
