"""Which module and which parameter of a base every tensor of an adapter is for: from names, all faults at once.

Names differ: by prefixes of wrappers and towers, between majors of transformers, between a checkpoint and the class
that loads it. A key binds where exactly one parameter has its name, or a name that differs from it by a prefix on one
side. What binds nowhere, in two places, or where another key binds already is named and refused, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import TargetError, listed
from .folder import Adapter, Factors
from .keys import unwrapped

# Prefixes that tell which of several parts of a model a module belongs to: such a one is not left out.
_PARTS = re.compile(r"vision|visual|image|audio|speech|encoder|decoder|draft|critic")


class Directory:
    """Every name that parameters of a base may have. `names`: what is found -> its names, the one in memory first."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self.names = {found: tuple(map(unwrapped, known)) for found, known in names.items()}
        self._whole: dict[str, set[str]] = {}
        self._cores: dict[str, set[str]] = {}
        self._ends: dict[str, set[str]] = {}
        for found, known in self.names.items():
            for name in known:
                self._whole.setdefault(name, set()).add(found)
                self._cores.setdefault(_core(name), set()).add(found)
                for end in _ends(name):
                    self._ends.setdefault(end, set()).add(found)

    def find(self, path: str) -> list[str]:
        """What `path` may mean: all that have that very name; else all whose name ends in it, or that it ends in; else
        all that differ in nothing but where `model` and `language_model` stand."""
        exact = self._whole.get(path)
        if exact:
            return sorted(exact)
        near = set(self._ends.get(path, ()))
        for end in _ends(path):
            if end in self._whole and not _PARTS.search(path.removesuffix(end)):
                near |= self._whole[end]
        return sorted(near or self._cores.get(_core(path), set()))

    def name(self, found: str) -> str:
        """The path in memory."""
        return self.names[found][0]


def _core(path: str) -> str:
    """The path without the words that majors of transformers have in different places."""
    return ".".join(part for part in path.split(".") if part not in ("model", "language_model"))


def _ends(path: str) -> Iterable[str]:
    """What is left of a path without its first words, a module and a parameter at least."""
    parts = path.split(".")
    return (".".join(parts[start:]) for start in range(1, len(parts) - 1))


@dataclass(frozen=True)
class Binding:
    """Keys of an adapter -> what they bind to in the directory: `modules` and `tokens` by the adapter's module paths,
    `others` by its names of parameters. `factors` are those of `modules`, with the scaling that patterns written for
    either name give."""

    modules: Mapping[str, str]
    factors: Mapping[str, Factors]
    others: Mapping[str, str]
    tokens: Mapping[str, str]


def bind(adapter: Adapter, directory: Directory, place: str, hint: str, *, only_modules: bool = False) -> Binding:
    """Every module (with its weight), every row of an embedding and every whole parameter of `adapter`.

    `place` is what the directory is of, as messages name it. only_modules: what is not factored may bind nowhere.
    Raises TargetError with `hint` that names everything that does not bind.
    """
    faults: list[str] = []
    modules = _bound(directory, {module: f"{module}.weight" for module in adapter.modules}, faults)
    idle: list[str] = [] if only_modules else faults
    tokens = _bound(directory, {module: f"{module}.weight" for module in adapter.tokens}, idle)
    others = _bound(directory, {key: key for key in adapter.others}, idle)
    if faults:
        raise TargetError(f"{adapter.location} does not fit {place}: {listed(faults, 4)}.", hint)
    factors = {
        module: adapter.under(module, directory.name(found).removesuffix(".weight"))
        for module, found in modules.items()
    }
    return Binding(modules, factors, others, tokens)


def _bound(directory: Directory, keys: Mapping[str, str], faults: list[str]) -> dict[str, str]:
    """Key -> what it binds to; what is wrong goes to `faults`."""
    found, taken = {}, dict[str, str]()
    for key, path in keys.items():
        near = directory.find(path)
        if len(near) != 1:
            faults.append(f"{key} may be any of {listed(near)}" if near else f"{key} is not in the base")
        elif near[0] in taken:
            faults.append(f"{taken[near[0]]} and {key} are both {near[0]}")
        else:
            found[key] = near[0]
            taken[near[0]] = key
    return found
