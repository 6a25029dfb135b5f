"""Tensor names against the table, against well-known leaf names, or against templates given by the user."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..matrices.layouts import Layout
from ..methods import ATTENTION, ROLES
from .architectures import LEAF_LAYOUTS, LEAF_PAIRS
from .rows import MLP_LEAVES, SHARED, STRICT, Architecture, Count, Slot

# Parts of a layer whose matrices are left alone, as words in the names of their tensors: experts, of which each token
# passes a few, and what chooses them. Fused kernels of Mamba layers, or their class itself, take some
# weights past the modules.
EXPERTS = re.compile(r"(?:^|\.)experts\.")
_ROUTERS = re.compile(r"(?:^|\.)(?:[^.]*router|gate|[^.]*expert_gate)(?:\.|$)")
_PAST_ITS_MODULE = re.compile(r"(?:^|\.)mamba\.(?:out|dt)_proj(?:\.|$)")


def kept(name: str) -> str:
    """Why a linear layer of this name has no adapter, as the end of "because they ..."; "" where it may have."""
    if EXPERTS.search(name):
        return "are experts of a mixture"
    if _ROUTERS.search(name.removesuffix(".weight")):
        return "choose the experts of a mixture"
    return "are read past their modules" if _PAST_ITS_MODULE.search(name) else ""


@dataclass(frozen=True)
class Match:
    """One tensor recognised as a projection; `prefix` is what stood before the path that the table knows, `count` and
    `inner_count` tell how many layers (and layers inside of one) the class builds; `tower` is the stack of layers
    itself, where `stack` tells parts of its layers apart."""

    role: str
    layer: int
    stack: str
    tensor: str
    prefix: str = ""
    layout: Layout | None = None
    count: Count | None = None
    inner: int = 0
    inner_count: Count = STRICT
    tower: str = ""

    @property
    def place(self) -> tuple[str, int, str]:
        """What only one tensor can be."""
        return self.stack, self.layer, self.role


def match_table(row: Architecture, base: str, names: Iterable[str], roles: Sequence[str]) -> list[Match]:
    """All tensors that a slot of the row describes, under any prefix that its checkpoints use."""
    return match_under(row, {"", *row.prefixes, *([f"{base}."] if base else [])}, names, roles)


def match_under(
    row: Architecture, prefixes: Collection[str], names: Iterable[str], roles: Sequence[str]
) -> list[Match]:
    """All tensors that a slot of the row describes, under one of these prefixes; a role in the model's own words is
    every matrix of that name in its layers, but for those that another role has."""
    head = "|".join(re.escape(prefix) for prefix in sorted(prefixes, key=len, reverse=True))
    words = list(_own_words(row, head, roles))
    by_end: dict[str, list[tuple[str, Slot, re.Pattern[str], str]]] = {}  # a mixture has a hundred thousand names
    for one in _patterns(row, head, roles):
        by_end.setdefault(last_word(one[3]), []).append(one)
    found = []
    for name in names:
        roles_here: set[str] = set()
        for role, slot, pattern, leaf in by_end.get(last_word(name), ()):
            if role not in roles_here and (hit := pattern.fullmatch(name)):
                roles_here.add(role)
                found.append(_match(name, role, slot, hit, row.layout(leaf)))
        if not roles_here and last_word(name) in roles and not kept(name):
            found += list(_by_word(name, words, row))[:1]
    return found


def last_word(name: str) -> str:
    """The last word of the name of a module, or of its weight."""
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def _match(name: str, role: str, slot: Slot, hit: re.Match[str], layout: Layout | None) -> Match:
    parts = hit.groupdict()
    inner = int(parts.get("inner") or 0)
    label = " ".join(part for part in (slot.stack, f"{inner or ''}", (parts.get("part") or "").strip(".")) if part)
    return Match(
        role, int(parts["layer"]), label, name, parts["prefix"], layout, slot.count, inner, slot.inner,
        slot.stack.removesuffix(SHARED).strip(),
    )  # fmt: skip


def _own_words(row: Architecture, head: str, roles: Sequence[str]) -> Iterator[tuple[Slot, re.Pattern[str]]]:
    """(layer, expression for names) of the roles that are no role of the table."""
    words = "|".join(re.escape(role) for role in roles if role not in ROLES)
    for slot in row.layers() if words else ():
        path = rf"(?P<prefix>{head}){_expression(slot.path)}\.(?P<part>(?:[^.]+\.)*)(?P<word>{words})\.weight"
        yield slot, re.compile(path)


def _by_word(name: str, words: Sequence[tuple[Slot, re.Pattern[str]]], row: Architecture) -> Iterator[Match]:
    for slot, pattern in words:
        if hit := pattern.fullmatch(name):
            layout = row.layout(hit["word"])
            if layout is None or layout.single:  # of a tensor that holds several, the roles tell which is which
                yield _match(name, hit["word"], slot, hit, layout)


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
    for role in roles:
        for slot in row.places(role) if role in ROLES else ():
            for leaf in row.leaves[role]:
                path = rf"(?P<prefix>{head}){_expression(slot.path)}\.{re.escape(leaf)}\.weight"
                yield role, slot, re.compile(path), leaf


def match_leaves(names: Sequence[str], roles: Sequence[str]) -> list[Match]:
    """For a model that no row describes: the first set of leaf names that is there for every role of attention; of the
    other roles, what lies in the same layers under usual names or the model's own words."""
    wanted = [role for role in roles if role in ATTENTION] or ["q", "v"]
    for leaves in LEAF_PAIRS:
        found = [match for role in wanted for match in _by_leaf(names, role, leaves[ATTENTION.index(role)])]
        if {match.role for match in found} == set(wanted):
            others = [role for role in roles if role not in ATTENTION]
            row = _row_of_layers(found, leaves)
            taken = {match.tensor for match in found}
            inner = match_under(row, {""}, [name for name in names if name not in taken], others) if others else []
            return [*(match for match in _labelled(found) if match.role in roles), *inner]
    return []


def _row_of_layers(found: Sequence[Match], leaves: Sequence[str]) -> Architecture:
    """The layers in which attention was recognised, as a row of the table."""
    heads = {match.prefix for match in found}
    slots = tuple(Slot(f"{head}{{layer}}", "" if len(heads) == 1 else head.strip(".")) for head in sorted(heads))
    attention = {role: (leaf,) for role, leaf in zip(ATTENTION, leaves, strict=True)}
    return Architecture("", {}, slots, {**attention, **MLP_LEAVES})


def match_template(template: str, role: str, names: Iterable[str], row: Architecture | None) -> list[Match]:
    """Tensors named by a template such as `blocks.{layer}.attn.wq.weight`; without `{layer}`, layer 0. Where the row
    has a layout for the leaf, only some of their lines are the projection."""
    pattern = re.compile(_expression(template))
    hits = ((name, pattern.fullmatch(name)) for name in names)
    leaf = template.removesuffix(".weight").rsplit(".", 1)[-1]
    layout = row.layout(leaf) if row and leaf in row.leaves[role] else None
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
        Match(role, int(hit["layer"]), f"{hit['head']}{hit['tail']}".strip("."), name, hit["head"], layout)
        for name, hit in hits
        if hit
    ]


def _labelled(found: list[Match]) -> list[Match]:
    """One stack needs no label."""
    single = len({match.stack for match in found}) == 1
    return [replace(match, stack="") for match in found] if single else found
