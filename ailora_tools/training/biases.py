"""BitFit: train the biases of a model alone, by the list that `init --method bitfit` wrote."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from ..checkpoint.gate import View, read_document
from ..checkpoint.source import user_path
from ..errors import TargetError, listed
from ..output.names import BIAS_LIST


class _BiasList(View):
    biases: list[str]


def train_biases(model: nn.Module, folder: str | Path) -> list[nn.Parameter]:
    """Freeze all of `model` but the biases in bitfit.json of `folder`; those biases, for the optimiser.

    Biases of the checkpoint that the model lacks, such as those of a head, are named in a warning.

    Raises CheckpointError if there is no bitfit.json, TargetError, and changes nothing, if the model has none of them.

    >>> found = bitfit("encoder", output="list")
    >>> len(train_biases(encoder, "list")) == len(found.biases)
    True
    """
    path = user_path(folder, "folder") / BIAS_LIST
    wanted = read_document(path, _BiasList, "Give the folder that `ailora-tools init --method bitfit` wrote.").biases
    named = dict(model.named_parameters())
    places = _places(wanted, named)
    found = {name for name in places.values() if name in named}
    if not found:
        raise TargetError(
            f"{folder}: the model has none of its {len(wanted)} biases.", "Load the model it was made for."
        )
    lacking = [name for name in wanted if places[name] not in named]
    if lacking:
        text = f"{folder}: {len(lacking)} of {len(wanted)} biases are not in the model: {listed(lacking)}."
        warnings.warn(text, UserWarning, stacklevel=2)
    for name, parameter in named.items():
        parameter.requires_grad = name in found
    return [parameter for name, parameter in named.items() if name in found]


def _places(wanted: Sequence[str], named: Iterable[str]) -> dict[str, str]:
    """Name in the checkpoint -> name in the model. A model with a head, without one or inside another module has
    another prefix before all names: the one that fits most names. Old files call the bias of a LayerNorm beta."""
    modern = {name: re.sub(r"\bbeta$", "bias", name) for name in wanted}
    alike: dict[str, list[str]] = {}
    for other in named:
        alike.setdefault(_end(other), []).append(other)
    ways = Counter(_way(name, other) for name in modern.values() for other in alike.get(_end(name), ()))
    (old, new), _ = ways.most_common(1)[0] if ways else (("", ""), 0)
    return {name: new + path.removeprefix(old) if path.startswith(old) else path for name, path in modern.items()}


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _way(name: str, other: str) -> tuple[str, str]:
    """How two names with the same end begin, before all that they share: such as ("bert.", "")."""
    parts, others = name.split("."), other.split(".")
    shared = next(
        (at for at, (one, two) in enumerate(zip(reversed(parts), reversed(others), strict=False)) if one != two),
        min(len(parts), len(others)),
    )
    heads = (part[: len(part) - shared] for part in (parts, others))
    first, second = ("".join(f"{word}." for word in head) for head in heads)
    return first, second
