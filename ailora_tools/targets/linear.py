"""`all-linear`: every linear layer of the stack, as PEFT means it.

The class that config.json names is asked which of its modules are linear, and the answer is put into roles; from then
on the names in the file decide, so that neither the work nor its proof needs the class. Left alone, and named: what
lies outside of the numbered layers that hold the attention (other towers, projectors, poolers, heads), experts and
routers of mixtures, and what no tensor of the file holds by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.index import Checkpoint
from ..errors import TargetError, listed
from ..matrices.quantisation import logical_name
from ..methods import ALL_LINEAR, ROLES, role_order
from .matching import Match, kept, last_word
from .module_names import parameter_paths
from .module_tree import linear_of_class
from .plan import find_matches, unreached_by_peft

_NARROW = "have a side below the rank"
_TURNED = "are stored the other way round, and how is not known"
_UNREACHED = "have names that PEFT keeps for experts"


@dataclass(frozen=True)
class Roles:
    """What is to be worked on, by role; `left`: path of a linear layer -> why it is none of it, as the end of "because
    they ..."."""

    roles: tuple[str, ...]
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def notices(self) -> list[str]:
        """One a reason, numbers of layers as stars."""
        groups: dict[str, dict[str, None]] = {}
        for path, reason in self.left.items():
            groups.setdefault(reason, {})[re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)] = None
        return [
            f"all-linear leaves alone, because they {reason}: {listed(list(paths), 6)}"
            for reason, paths in groups.items()
        ]


def spelled_out(checkpoint: Checkpoint, roles: Sequence[str], rank: int = 1, major: int = 0) -> Roles:
    """The roles, with those that "all-linear" stands for in its place.

    rank: kinds of matrices that the table does not know are left alone where one has a smaller side. major: of the
    transformers that will load an adapter; 0 where matrices are looked at alone. TargetError where the class cannot be
    asked, or its layers are not in the file.
    """
    if ALL_LINEAR not in roles:
        return Roles(tuple(roles))
    answer = linear_of_class(checkpoint)
    if "unknown" in answer:
        raise TargetError(
            f"{checkpoint.location}: which of its layers are linear only the class can tell, and {answer['unknown']}.",
            f"Name the roles: those of {', '.join(ROLES)} that the model has; names of its own modules are roles, too.",
        )
    linear: Mapping[str, Any] = answer["linear"]
    held = {path.removesuffix(".weight"): logical_name(name) for name, path in parameter_paths(checkpoint).items()}
    words = {last_word(held[path]) for path in linear if path in held and not kept(path)}
    matches = find_matches(checkpoint, (*ROLES, *sorted(words)))
    left = {path: why for path in linear if (why := _outside(path, path in held, matches))}
    unreached = unreached_by_peft(checkpoint.model_type, linear, major) if major else []
    unfit: dict[str, str] = {}  # role -> why: it is of one kind, and none of its matrices is taken where one cannot be
    taken = [path for path in linear if path not in left]
    for path in taken:
        if why := _UNREACHED if path in unreached else _unfit(linear[path], matches[path], rank):
            unfit |= {match.role: why for match in matches[path]}
    for path in taken:
        if whys := [unfit[match.role] for match in matches[path] if match.role in unfit]:
            left[path] = whys[0]
    found = {match.role for path in taken if path not in left for match in matches[path]}
    if not found:
        raise TargetError(
            f"{checkpoint.location}: the file has none of the linear layers of {answer['class']} that can be adapted.",
            "The table may need a row for such models (examples/guide/models.md, Adding an architecture).",
        )
    return Roles(tuple(sorted(found, key=role_order)), {path: left[path] for path in linear if path in left})


def _outside(path: str, held: bool, matches: Mapping[str, Sequence[Match]]) -> str:
    """Why a linear layer of the class is none that could be adapted; "" if it is one."""
    if path in matches or kept(path):
        return kept(path)
    return "lie outside the layers" if held else "have no tensor of their own in the file"


def _unfit(layer: Sequence[Any], matches: Sequence[Match], rank: int) -> str:
    """Why no adapter can be made for it; "" if one can. layer: (out, in), and whether it is a Conv1D."""
    sides, turned = layer
    if turned and not all(match.layout and match.layout.transposed for match in matches):
        return _TURNED
    own = any(match.role not in ROLES for match in matches)
    return _NARROW if own and min(sides) < rank else ""
