"""Tensor names against the table, against well-known leaf names, or against templates given by the user."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..matrices.layouts import Layout
from ..methods import ROLES
from .architectures import LEAF_LAYOUTS, LEAF_PAIRS
from .rows import STRICT, Architecture, Count, Slot


@dataclass(frozen=True)
class Match:
    """One tensor recognised as a projection; `prefix` is what stood before the path that the table knows, `count` and
    `inner_count` tell how many layers (and layers inside of one) the class builds."""

    role: str
    layer: int
    stack: str
    tensor: str
    prefix: str = ""
    layout: Layout | None = None
    count: Count | None = None
    inner: int = 0
    inner_count: Count = STRICT


def match_table(row: Architecture, base: str, names: Iterable[str], roles: Sequence[str]) -> list[Match]:
    """All tensors that a slot of the row describes, under any prefix that its checkpoints use."""
    return match_under(row, {"", *row.prefixes, *([f"{base}."] if base else [])}, names, roles)


def match_under(
    row: Architecture, prefixes: Collection[str], names: Iterable[str], roles: Sequence[str]
) -> list[Match]:
    """All tensors that a slot of the row describes, under one of these prefixes."""
    head = "|".join(re.escape(prefix) for prefix in sorted(prefixes, key=len, reverse=True))
    patterns = list(_patterns(row, head, roles))
    found = []
    for name in names:
        roles_here: set[str] = set()
        for role, slot, pattern, leaf in patterns:
            if role not in roles_here and (hit := pattern.fullmatch(name)):
                roles_here.add(role)
                inner = int(hit.groupdict().get("inner") or 0)
                label = f"{slot.stack} {inner}" if inner else slot.stack
                layout, layer = row.layouts.get(leaf), int(hit["layer"])
                counts = slot.count, inner, slot.inner
                found.append(Match(role, layer, label, name, hit["prefix"], layout, *counts))
    return found


def prefixes_of(row: Architecture, names: Iterable[str], roles: Sequence[str]) -> list[str]:
    """Whatever stands before the slots of the row in these names; where one slot is the end of another, the less."""
    patterns = [pattern for _, _, pattern, _ in _patterns(row, r"(?:[^.]+\.)*?", roles)]
    found = set()
    for name in names:
        if hits := [hit["prefix"] for pattern in patterns if (hit := pattern.fullmatch(name))]:
            found.add(min(hits, key=len))
    return sorted(found)


def _patterns(row: Architecture, head: str, roles: Sequence[str]) -> Iterator[tuple[str, Slot, re.Pattern[str], str]]:
    """(role, slot, expression for names, leaf) of every slot; `head` is an expression for what stands before it."""
    for slot in row.slots:
        for role in roles:
            for leaf in row.leaves[role]:
                path = rf"(?P<prefix>{head}){_expression(slot.path)}\.{re.escape(leaf)}\.weight"
                yield role, slot, re.compile(path), leaf


def match_leaves(names: Sequence[str], roles: Sequence[str]) -> list[Match]:
    """For a model that no row describes: the first set of leaf names that is there for every role."""
    for leaves in LEAF_PAIRS:
        found = [match for role in roles for match in _by_leaf(names, role, leaves[ROLES.index(role)])]
        if {match.role for match in found} == set(roles):
            return _labelled(found)
    return []


def match_template(template: str, role: str, names: Iterable[str], row: Architecture | None) -> list[Match]:
    """Tensors named by a template such as `blocks.{layer}.attn.wq.weight`; without `{layer}`, layer 0. Where the row
    has a layout for the leaf, only some of their lines are the projection."""
    pattern = re.compile(_expression(template))
    hits = ((name, pattern.fullmatch(name)) for name in names)
    leaf = template.removesuffix(".weight").rsplit(".", 1)[-1]
    layout = row.layouts.get(leaf) if row and leaf in row.leaves[role] else None
    return [Match(role, int(hit.groupdict().get("layer") or 0), "", name, layout=layout) for name, hit in hits if hit]


def _expression(path: str) -> str:
    """The path as an expression, `{layer}` and `{inner}` standing for whole numbers."""
    text = re.escape(path)
    for field in ("layer", "inner"):
        text = text.replace(rf"\{{{field}\}}", rf"(?P<{field}>\d{{1,9}})", 1)
    return text


def _by_leaf(names: Iterable[str], role: str, leaf: str) -> list[Match]:
    """Tensors `<head><number>.<tail><leaf>.weight`; head and tail make the provisional stack."""
    pattern = re.compile(
        rf"(?P<head>(?:.*\.)?)(?P<layer>\d{{1,9}})\.(?P<tail>(?:[A-Za-z_]\w*\.)*){re.escape(leaf)}\.weight"
    )
    hits = ((name, pattern.fullmatch(name)) for name in names)
    layout = LEAF_LAYOUTS.get(leaf)
    return [
        Match(role, int(hit["layer"]), f"{hit['head']}{hit['tail']}".strip("."), name, layout=layout)
        for name, hit in hits
        if hit
    ]


def _labelled(found: list[Match]) -> list[Match]:
    """One stack needs no label."""
    single = len({match.stack for match in found}) == 1
    return [replace(match, stack="") for match in found] if single else found
