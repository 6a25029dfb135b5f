"""The written analysis: analysis.json with its schema, and metrics.csv for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..checkpoint.gate import DOCUMENT_BYTES, decode, read_path
from ..checkpoint.header import quoted
from ..errors import CheckpointError
from ..metrics.definitions import DEFINITIONS
from .analysis_fields import Analysis, require_whole
from .names import ANALYSIS
from .spans import json_text

ANALYSIS_FORMAT, ANALYSIS_VERSION = "ailora-tools analysis", 1
_PLACE = ("role", "stack", "layer", "tensor", "rows", "columns", "dtype")


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of analysis.json, version 1."""
    text = files("ailora_tools").joinpath("output/analysis.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def dump(document: Mapping[str, Any]) -> str:
    """One matrix a line, so that the file can be read and compared; NaN and infinity are refused, not written."""
    head = {key: value for key, value in document.items() if key != "matrices"}
    body = json_text(head, 1)
    rows = ",\n".join(json_text(row) for row in document["matrices"])
    return f'{body[:-2]},\n "matrices": [\n{rows}\n ]\n}}\n'


def read_analysis(path: Path) -> dict[str, Any]:
    """An analysis.json, or the one in a folder; CheckpointError if it is not one of this version, or not whole."""
    path = path / ANALYSIS if path.is_dir() else path
    raw = read_path(path, "Give the analysis.json that `analyze` wrote.", limit=DOCUMENT_BYTES)
    document = decode(raw, str(path), dict[str, Any], "Run `analyze` again.")
    found = [document.get(key) for key in ("format", "version")]
    if found != [ANALYSIS_FORMAT, ANALYSIS_VERSION]:
        raise CheckpointError(
            f"{path}: format and version are {quoted(found)}, expected {[ANALYSIS_FORMAT, ANALYSIS_VERSION]}.",
            "Give the analysis.json that this version of `analyze` wrote.",
        )
    try:
        require_whole(decode(raw, str(path), Analysis, _AGAIN))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.", _AGAIN) from None
    return document


_AGAIN = "It was changed or is damaged: run `analyze` again."


def metric_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record a matrix and fine-tune ("against" is empty for the matrix itself), one entry a metric; None where a
    metric is not of that, or undefined."""
    nothing = {row.key: None for kind in ("matrix", "change") for row in DEFINITIONS if row.of == kind}
    rows: list[dict[str, Any]] = []
    for matrix in document["matrices"]:
        where = (matrix["role"], matrix["stack"], matrix["layer"], matrix["tensor"], *matrix["shape"], matrix["dtype"])
        place = dict(zip(_PLACE, where, strict=True))
        rows.append({**place, "against": "", **nothing, **matrix["metrics"]})
        for tuned, change in zip(document["against"], matrix["changes"], strict=True):
            rows.append({**place, "against": tuned["name"], **nothing, **change["metrics"]})
    return rows


def metrics_csv(document: Mapping[str, Any]) -> str:
    """`metric_rows` for a spreadsheet."""
    rows, out = metric_rows(document), io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _plain(value: object) -> object:
    """A spreadsheet must not take a hostile name for a formula (OWASP, CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
