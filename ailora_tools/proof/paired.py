"""Which tensor of a merged model was made from which of its base: names differ between releases, ties come and go.

PEFT and what is built on it save what the class builds, under the names of the installed transformers: a head that is
tied is left out, buffers and layers that no class builds are gone. None of that is another model; all is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..adapters.binding import Directory
from ..adapters.few_bits import Source, all_places, sources_of
from ..adapters.places import Change, Place, Places, base_directory
from ..checkpoint.header import StoredTensor
from ..checkpoint.index import Checkpoint
from ..matrices.restore import Restored
from ..targets.ties import Tied, tied_parameters

# Buffers that older releases saved: they follow from config.json.
_BUFFERS = re.compile(r"(?:.*\.)?(?:inv_freq|position_ids|masked_bias|token_type_ids|num_batches_tracked)")
_MASK = re.compile(r".*\b(?:attn|attention|self_attention)\.bias")  # of GPT-2 and GPT-NeoX, four axes
_BESIDE = re.compile(
    r"(?:model\.)?mtp\..*"
)  # layers that predict further tokens, which servers use and transformers not
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\..*")
_OLD_NORMS = (("weight", "gamma"), ("bias", "beta"))  # of BERT's oldest files


@dataclass(frozen=True)
class Pair:
    """A tensor of the merged model, and the parameter of the base that it was made from with what changes there; an
    item of a list, which costs what is read for it."""

    here: StoredTensor
    source: Source

    @property
    def name(self) -> str:
        return self.here.name

    @property
    def touched(self) -> bool:
        return self.source.place.change != Change()

    @property
    def plain(self) -> bool:
        """Whether it is to be the base's bytes: neither changed, nor out of few bits, nor in another dtype."""
        return not self.touched and self.source.quantised is None and self.here.dtype == self.source.stored.dtype

    @property
    def nbytes(self) -> int:
        return self.here.nbytes + self.source.stored.nbytes

    @property
    def cost(self) -> float:
        return float(self.nbytes)


@dataclass(frozen=True)
class Paired:
    """lost: parameters of the base that the merged model lacks; strange: its tensors that the base lacks; tied: those
    that it leaves out because another has their value; unbuilt: those of the base that no class builds."""

    pairs: tuple[Pair, ...]
    lost: tuple[str, ...]
    strange: tuple[str, ...]
    tied: tuple[str, ...]
    unbuilt: tuple[str, ...]


def pair_up(restored: Restored, found: Places, merged: Checkpoint) -> Paired:
    """From headers alone. The order is that of the files of the merged model."""
    base = restored.plain
    groups = tied_parameters(base)
    sources = _sources(restored, found)
    names = _names(merged, base_directory(base, groups), sources)
    taken = {origin: here for here, origin in names.items() if origin in sources}
    pairs = [Pair(merged.tensors[here], sources[origin]) for origin, here in taken.items()]
    shared = {here: _shared(origin, groups, sources) for here, origin in names.items() if origin not in sources}
    pairs += [Pair(merged.tensors[here], source) for here, source in shared.items() if source is not None]
    left = [name for name in sources if name not in taken]
    tied = [name for name in left if _is_tied(name, groups, taken, found, merged)]
    unbuilt = [name for name in left if name not in tied and _is_unbuilt(base, sources[name].stored)]
    lost = [name for name in left if name not in (*tied, *unbuilt)]
    matched = {pair.name for pair in pairs}
    strange = [name for name, stored in merged.tensors.items() if name not in matched and not _is_buffer(stored)]
    pairs.sort(key=lambda pair: (pair.here.file, pair.here.start))
    return Paired(tuple(pairs), tuple(lost), tuple(strange), tuple(tied), tuple(unbuilt))


def _sources(restored: Restored, found: Places) -> dict[str, Source]:
    """Name of every parameter of the merged model -> what it is made from."""
    changed = {source.place.name: source for source in sources_of(restored, all_places(restored, found.places))}
    others = {name: one for name, one in restored.plain.tensors.items() if name not in changed}
    return {**{name: Source(Place(name, one, Change()), one) for name, one in others.items()}, **changed}


def _names(merged: Checkpoint, directory: Directory, sources: Mapping[str, Source]) -> dict[str, str]:
    """Tensor of the merged model -> parameter of the base, where exactly one may be meant."""
    found = {name: name for name in merged.tensors if name in sources}
    taken = set(found.values())
    for name in (name for name in merged.tensors if name not in found):
        near = directory.find(name) or [other for other in _older(name) if other in sources]
        if len(near) == 1 and near[0] not in taken:
            found[name] = near[0]
            taken.add(near[0])
    return found


def _older(name: str) -> Iterator[str]:
    for new, old in _OLD_NORMS:
        if name.endswith(f"LayerNorm.{new}"):
            yield f"{name.removesuffix(new)}{old}"


def _shared(name: str, groups: Sequence[Tied], sources: Mapping[str, Source]) -> Source | None:
    """What a parameter is made from that has no tensor in the base, because it shares another's."""
    for group in groups:
        if name in group.others and group.source in sources:
            return sources[group.source]
    return None


def _is_tied(
    name: str, groups: Sequence[Tied], taken: Mapping[str, str], found: Places, merged: Checkpoint
) -> bool:  # fmt: skip
    """Whether a parameter may be left out: the merged model ties it to one that is there."""
    if name in found.untied or merged.config.get("tie_word_embeddings") is False:
        return False
    members = next(((group.source, *group.others) for group in groups if name in (group.source, *group.others)), ())
    return any(other in taken for other in members if other != name)


def _is_unbuilt(base: Checkpoint, stored: StoredTensor) -> bool:
    """Whether no class of transformers builds it: a buffer, or a layer beyond those that config.json counts."""
    count, layer = base.config.get("num_hidden_layers"), _LAYER.fullmatch(stored.name)
    beyond = isinstance(count, int) and layer is not None and int(layer[1]) >= count
    return _is_buffer(stored) or bool(_BESIDE.fullmatch(stored.name)) or beyond


def _is_buffer(stored: StoredTensor) -> bool:
    mask = bool(_MASK.fullmatch(stored.name)) and len(stored.shape) == 4
    return bool(_BUFFERS.fullmatch(stored.name)) or mask
