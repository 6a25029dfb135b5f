"""Merging into a base in few bits: every matrix of it is written anew, whether the adapter changes it or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.header import StoredTensor
from ..matrices.quantisation import Quantised
from ..matrices.restore import SIDE_FILES, Restored
from .places import Change, Place
from .zeros import about_zeros


@dataclass(frozen=True)
class Source:
    """A parameter of the merged model, and what is read for it: a tensor of the base, or the main piece of one in few
    bits, of which in_zeros only the zero points are written."""

    place: Place
    stored: StoredTensor
    quantised: Quantised | None = None
    in_zeros: bool = False


def all_places(restored: Restored, places: Sequence[Place]) -> list[Place]:
    """Those of the adapter, and every other matrix that was in few bits, which nothing changes; in file order."""
    taken = {place.name for place in places}
    others = [Place(name, stored, Change()) for name, stored in restored.added.items() if name not in taken]
    return sorted([*places, *others], key=lambda place: (place.stored.file, place.stored.start, place.name))


def sources_of(restored: Restored, places: Iterable[Place]) -> list[Source]:
    """What to read for each place."""
    found = [(place, restored.matrices.get(place.stored.name)) for place in places]
    return [
        Source(place, held.pieces["main"] if held else place.stored, held, bool(held) and restored.in_zeros)
        for place, held in found
    ]


def kept_companions(restored: Restored, names: Sequence[str]) -> list[str]:
    """The files to copy, without those that say how the weights were quantised."""
    return [
        name
        for name in names
        if not restored.matrices or restored.in_zeros or name.rsplit("/", 1)[-1] not in SIDE_FILES
    ]


def about_few_bits(restored: Restored, dtypes: Mapping[str, str]) -> list[str]:
    """What becomes of them, as a notice."""
    if restored.in_zeros:
        return about_zeros(restored)
    if not restored.matrices:
        return []
    labels = sorted({quantised.label for quantised in restored.matrices.values()})
    kinds = sorted({dtypes[name] for name in restored.matrices})
    return [f"{len(restored.matrices)} matrices in {', '.join(labels)} become {', '.join(kinds)}"]
