"""The analysis as the page carries it for its download button: whole if small, with thinned spectra if large."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_EMBEDDED = 1_500_000  # bytes of the document that the page carries whole; beyond, spectra are thinned
_KEPT = 64  # values of a thinned spectrum
_LISTS = ("singular_values", "delta_singular_values", "singular_values_after")


def embedded(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document for the download button; of a large one, spectra at 64 places and a note that says so."""
    if len(json.dumps(document)) <= _EMBEDDED:
        return dict(document)
    note = f"spectra are thinned to {_KEPT} values here; {document['model']['name']}'s analysis.json holds all"
    return {**document, "thinned": note, "matrices": [_thinned(row) for row in document["matrices"]]}


def _thinned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _every(item) if key in _LISTS else _thinned(item) for key, item in value.items()}
    return [_thinned(item) for item in value] if isinstance(value, list) else value


def _every(values: Sequence[float]) -> list[float]:
    places = sorted({round(at * (len(values) - 1) / (_KEPT - 1)) for at in range(_KEPT)})
    return [values[at] for at in places]
