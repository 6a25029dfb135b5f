"""Stacks of layers: their order, their number in words, and the many short ones of a UNet as one of numbered blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

Place = tuple[str, int]  # (stack, layer)

_MANY = 4  # stacks that are named one by one; families with towers and cross-attention have up to three
# diffusers' BasicTransformerBlock attends to the image in attn1 and to the text in attn2.
_KINDS = {"attn1": "self", "attn2": "cross"}


def in_order(stacks: Iterable[str]) -> list[str]:
    """Each once: encoders first, since what they read comes first; the others by name, cross-attention last."""
    return sorted(set(stacks), key=lambda name: (not name.startswith("encoder"), name == "cross", name))


def in_blocks(places: Iterable[Place]) -> Mapping[Place, Place] | None:
    """Where stacks are many and numbers stand in their names ("up_blocks.1.attentions.2.transformer_blocks.attn1"):
    (stack, layer) -> (kind of attention, number of the block through the whole model). None where names are enough."""
    held = dict.fromkeys(places)
    stacks = {stack for stack, _ in held}
    if len(stacks) <= _MANY or not all(re.search(r"\.\d+\.", stack) for stack in stacks):
        return None
    parts = {place: (*place[0].rpartition(".")[::2], place[1]) for place in held}
    blocks = sorted({(block, layer) for block, _, layer in parts.values()}, key=_natural)
    kinds = {kind for _, kind, _ in parts.values()}
    numbers = {block: at for at, block in enumerate(blocks)}
    return {
        place: (_KINDS.get(kind, kind) if len(kinds) > 1 else "", numbers[block, layer])
        for place, (block, kind, layer) in parts.items()
    }


def _natural(block: tuple[str, int]) -> tuple[object, ...]:
    texts = re.split(r"(\d+)", block[0])
    return (*(int(text) if text.isdigit() else text for text in texts), block[1])


def counted(places: Iterable[Place], unit: str = "layer") -> str:
    """'12 layers', or of several stacks '12 layers (4 in each of 3 stacks)', '16 layers (4 + 6 + 6 of 3 stacks)'."""
    held = list(dict.fromkeys(places))
    each = [sum(stack == name for stack, _ in held) for name in in_order(stack for stack, _ in held)]
    total = f"{len(held)} {unit}{'s' if len(held) != 1 else ''}"
    if len(each) < 2:
        return total
    if len(set(each)) == 1:
        return f"{total} ({each[0]} in each of {len(each)} stacks)"
    return f"{total} ({' + '.join(map(str, each))} of {len(each)} stacks)"


def titled(title: str, stack: str, stacks: Sequence[str]) -> str:
    """A title that names its stack where there are several."""
    return f"{title}, {stack or 'main'}" if len(stacks) > 1 else title
