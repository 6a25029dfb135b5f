"""An adapter against a base: which keys bind to which tensor, whether shapes fit, and whether it changes anything.

Loaders are silent about a key that binds nowhere: the module starts anew, and the model computes what the base does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..adapters.complete import require_complete
from ..adapters.folder import Adapter
from ..adapters.lost import require_whole
from ..adapters.places import base_directory, find_places
from ..adapters.promises import Base, require_promised
from ..checkpoint.index import Checkpoint
from ..errors import AiloraError, TargetError, listed
from ..targets.module_names import possible_names
from ..targets.ties import tied_parameters
from .folder import Check


@dataclass(frozen=True)
class Bound:
    """A key of the adapter, the tensor of the base that it binds to, "" for none, and what is wrong with it. exact:
    whether it has the very name of the module in some release of transformers, which loaders ask for."""

    key: str
    tensor: str
    exact: bool = True
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def bindings(adapter: Adapter, base: Checkpoint) -> list[Bound]:
    """Every module, every embedding with new rows and every whole parameter."""
    directory = base_directory(base, tied_parameters(base))
    names = {path for known in possible_names(base).values() for path in known}
    keys = {module: f"{module}.weight" for module in (*adapter.modules, *adapter.tokens)}
    keys |= {path: path for path in adapter.others}
    found = []
    for key, path in keys.items():
        near = directory.find(path)
        if len(near) == 1:
            found.append(Bound(key, near[0], path in names))
        else:
            found.append(Bound(key, "", False, f"may be any of {listed(near)}" if near else "is not in the base"))
    return found


def check_keys(found: Sequence[Bound]) -> Check:
    """Every key binds to one tensor of the base."""
    loose = [one for one in found if one.fault]
    if loose:
        told = "; ".join(f"{one.key} {one.fault}" for one in loose[:4])
        return Check("keys", False, f"{len(loose)} of {len(found)} bind nowhere: {told}")
    told = f"all {len(found)} bind to a tensor of the base"
    other = [f"{one.key} is {re.sub(r'[.]weight$', '', one.tensor)}" for one in found if not one.exact]
    if other:
        told += f"; {len(other)} under another name than the class has, by which other loaders may pass them over: "
        told += listed(other, 2)
    return Check("keys", bool(found), told if found else "it has no module")


def checks_against(adapter: Adapter, base: Checkpoint) -> Iterator[Check]:
    """Shapes, and what its config promises for this base."""
    try:
        places = find_places(base, adapter)
    except TargetError as error:
        yield Check("shapes", False, error.problem)
        return
    yield Check("shapes", True, f"those of {len(places.places)} tensors of the base")
    yield _attempt("complete", lambda: require_complete(base, adapter, places, None))


def checks_alone(adapter: Adapter) -> Iterator[Check]:
    """Without a base: what its config promises of its own modules, and whether it is whole."""

    def promised() -> list[str]:
        require_promised(
            adapter, {module: module for module in adapter.modules}, Base(tuple(adapter.modules), of_start=True)
        )
        return require_whole(adapter, adapter.modules, None, {})

    yield _attempt("complete", promised)


def _attempt(name: str, step: Any) -> Check:
    try:
        told = step()
    except AiloraError as error:
        return Check(name, False, error.problem)
    return Check(name, True, "; ".join(told) or "all that its config promises, in finite numbers")


def check_recorded(adapter: Adapter, told: Mapping[str, Any]) -> Check:
    """Of a converted adapter: the modules and ranks that were recorded when it was written."""
    expected = {one.get("module"): one.get("rank") for one in told.get("modules", ())}
    added = set(told.get("added", ()))
    faults = [f"{name} missing" for name in expected if name not in adapter.modules]
    faults += [f"{name} not recorded" for name in adapter.modules if name not in expected and name not in added]
    faults += [
        f"{name} has rank {adapter.modules[name].rank}, recorded is {rank}"
        for name, rank in expected.items()
        if name in adapter.modules and adapter.modules[name].rank != rank
    ]
    return Check("recorded", not faults, listed(faults) or f"{len(expected)} modules with their ranks")
