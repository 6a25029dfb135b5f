"""Which row describes a checkpoint: by its model type, or by that of the text model inside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..checkpoint.index import Checkpoint
from ..errors import TargetError, listed
from ..matrices.text_config import text_config
from ..methods import ATTENTION
from .architectures import BY_MODEL_TYPE
from .matching import Match, match_under, prefixes_of
from .multimodal import OTHER_TOWERS, TEXT
from .rows import DECODER, Architecture


@dataclass(frozen=True)
class Known:
    """What the table says of a checkpoint.

    row: of its model type, with the leaves and layouts of the text model that it has inside; None if unknown.
    base: prefix of the head classes. inner: type of the text model, where config.json nests one.
    inner_row: that of `inner`, None if unknown.
    """

    kind: str | None
    row: Architecture | None = None
    base: str = ""
    inner: str | None = None
    inner_row: Architecture | None = None

    @property
    def sizes_are_certain(self) -> bool:
        """Whether a row tells what all the rows of a matrix are, gates among them."""
        return self.row is not None and (self.inner is None or self.inner_row is not None)


def known(checkpoint: Checkpoint) -> Known:
    """Row, prefix and text model of the checkpoint's type."""
    kind, config = checkpoint.model_type, checkpoint.config
    nested = text_config(config)
    stated = nested.get("model_type") if nested is not config else None
    inner = stated if isinstance(stated, str) else None
    inner_row = BY_MODEL_TYPE.get(inner or "")
    row = BY_MODEL_TYPE.get(kind or "")
    if row is None or kind is None:
        return Known(kind, inner=inner, inner_row=inner_row)
    base = row.model_types[kind]
    if inner_row is not None and inner_row.layouts and row.slots == TEXT and inner_row.slots == DECODER:
        row = replace(row, leaves=inner_row.leaves, layouts=inner_row.layouts, mlp=inner_row.mlp)
    return Known(kind, row, base, inner, inner_row)


def match_text_model(
    known: Known, checkpoint: Checkpoint, names: Sequence[str], roles: Sequence[str]
) -> tuple[list[Match], list[str]]:
    """For a type that no row describes with a text model that one does: its projections and a notice; nothing if no
    stack fits, TargetError if more than one does, since a wrong one would be worse than none."""
    row = known.inner_row
    if row is None:
        return [], []
    attention = [role for role in roles if role in ATTENTION] or ["q", "v"]
    fitting = list(_fitting(row, checkpoint, names, attention))
    if len(fitting) > 1:
        fitting = [prefix for prefix in fitting if not OTHER_TOWERS.search(prefix)] or fitting
    if len(fitting) > 1:
        raise TargetError(
            f"{checkpoint.location} (model type {known.kind}): its text model is a {known.inner}, but more than one "
            f"stack of tensors is like that of one: under {listed([repr(prefix) for prefix in fitting], 6)}.",
            "Guessing would do harm. A row of the table of architectures says which: see examples/guide/models.md.",
        )
    if not fitting:
        return [], []
    found = match_under(row, fitting, names, roles)
    return found, [
        f"model type {known.kind!r} is not in the table, but {known.inner!r}, its text model, is: taken as "
        f"{row.family} under {fitting[0]!r}; check with `inspect`"
    ]


def _fitting(row: Architecture, checkpoint: Checkpoint, names: Sequence[str], roles: Sequence[str]) -> Iterator[str]:
    """Prefixes under which all roles are found, in matrices of the width that the text model has."""
    width = text_config(checkpoint.config).get("hidden_size")
    for prefix in prefixes_of(row, names, roles):
        matches = match_under(row, [prefix], names, roles)
        stored = [checkpoint.tensors.get(match.tensor) for match in matches]
        shapes = [one.shape for one in stored if one is not None]  # those in few bits have other names and shapes
        fits = not shapes or not isinstance(width, int) or all(width in shape for shape in shapes)
        if fits and {match.role for match in matches} == set(roles):
            yield prefix
