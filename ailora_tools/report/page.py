"""report.html: one file without outside requests, from an analysis document. Everything named in it is escaped."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from ..methods import symbol
from ..output.analysis import metrics_csv
from . import sections
from .drawing import colour, short
from .embedded import embedded
from .frame import Frame, framed
from .motions import by_rank, motion_texts
from .rows import PARTS, Row, copies, of_role, once, read_rows, roles
from .stacks import counted
from .words import number, percent, size, typeset


def render(document: Mapping[str, Any]) -> str:
    """The report as HTML text."""
    rows = read_rows(document)
    frame = Frame(
        title=_title(document, rows),
        kind="Spectra of attention weights",
        heading=_heading(document),
        facts=_facts(document, rows),
        footer=_footer(document),
        slug=re.sub(r"[^\w.-]+", "-", document["model"]["name"]) or "analysis",
        gist=_gist(document, rows),
    )
    downloads = {"document": embedded(document), "csv": metrics_csv(document)}
    told = {"ranks": _held(rows), "rows": [_row(row) for row in rows], "unit": rows[0].unit}
    return framed(sections.build(document, rows), frame, downloads | told)


def _title(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Of the tab: models in folders of one name are told apart by where they lie and what they are compared with."""
    tuned = ", ".join(other["name"] for other in document["against"])
    name = document["model"]["name"] + (f" → {tuned}" if tuned else "")
    place = document["model"]["location"].rstrip("/").split("/")[:-1]
    within = f" in {place[-1]}" if place and place[-1] else ""
    return f"{name}{within}: spectra of {' and '.join(symbol(role) for role in roles(rows))}"


def _gist(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Kind, layers and matrices in a line."""
    model = document["model"]
    shapes = sorted({row.shape for row in rows})
    shown = ", ".join(f"{m} × {n}" for m, n in shapes[:3]) + (" ..." if shapes[3:] else "")
    layers = counted((row.place for row in rows), rows[0].unit)
    number_types = ", ".join(sorted({row.dtype for row in rows}))
    return f"{model['model_type'] or model['family']} · {layers} · {len(rows)} matrices, {shown} · {number_types}"


def _row(row: Row) -> dict[str, Any]:
    """What the page of one layer tells besides its figures and metrics."""
    quantiles = [number(row.quantiles[row.quantile_levels.index(level)]) for level in (0.05, 0.25, 0.5, 0.75, 0.95)]
    return {
        "role": row.role, "name": typeset(symbol(row.role)), "stack": row.stack, "layer": row.layer,
        "tensor": row.tensor, "shape": list(row.shape), "edge": short(row.metrics["noise_edge"]),
        "colour": colour(row.role), "elements": " / ".join(quantiles),
    }  # fmt: skip


def _heading(document: Mapping[str, Any]) -> str:
    """The model's name, and what it is compared with, as HTML."""
    tuned = ", ".join(other["name"] for other in document["against"])
    against = f" <small>and what became of it in {escape(tuned)}</small>" if tuned else ""
    return escape(document["model"]["name"]) + against


def _facts(document: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Name and value of what the header states, as plain text."""
    model = document["model"]
    tuned = "".join(f", {size(other['bytes_read'])} of {other['name']}" for other in document["against"])
    kind = model["family"] + (f" ({model['model_type']})" if model["model_type"] else "")
    matrices = ", ".join(f"{len(of_role(rows, role))} × {symbol(role)}" for role in roles(rows))
    found = [
        ("model", kind),
        ("revision", model["revision"] or "local files"),
        ("analysed", f"{matrices}; {counted((row.place for row in rows), rows[0].unit)}"),
        ("shapes", ", ".join(sorted({" × ".join(map(str, row.shape)) for row in rows}))),
        ("stored as", ", ".join(sorted({row.dtype for row in rows}))),
        ("read", f"{size(model['bytes_read'])} of {size(model['bytes_total'])}" + tuned),
        ("took", f"{number(document['seconds'])} s"),
        ("from", "; ".join([model["location"], *(other["location"] for other in document["against"])])),
        ("made", document["created"].replace("T", " ").replace("Z", " UTC")),
    ]
    if copied := copies(rows):
        found.append(("copies", f"{len(copied)} matrices, counted once"))
    if document["skipped"]:
        count = len(document["skipped"])
        found.append(("left out", f"{count} {'matrix' if count == 1 else 'matrices'}"))
    return found


def _footer(document: Mapping[str, Any]) -> str:
    """The command that makes it again, and versions, as HTML."""
    tool = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in document["tool"].items())
    return (
        f"<p>Made again by</p><pre>{escape(command_line(document))}</pre><p>{escape(tool)}; device "
        f"{escape(str(document['settings']['device']))}</p>"
    )


def command_line(document: Mapping[str, Any]) -> str:
    """What makes the analysis again, quoted for a shell."""
    settings = document["settings"]
    words = ["ailora-tools", "analyze", document["model"]["location"]]
    for other in document["against"]:
        words += ["--against", other["location"]]
    for name in ("layers", "q_tensor", "v_tensor"):
        if settings.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    words += ["--roles", ",".join(settings["roles"]), "--rank", str(settings["rank"])]
    words += ["--heads"] if settings.get("heads") else []
    words += ["--suggest-ranks", str(document["ranks"]["budget"])] if document.get("ranks") else []
    words += ["--suggest-targets", str(len(document["targets"]["modules"]))] if document.get("targets") else []
    return shlex.join(words)


def _held(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the slider tells at each rank that all matrices have."""
    common = min((row.cuts.ranks for row in rows), key=len)
    motion = by_rank(rows) or [{}] * len(common)
    texts = [{**_texts(rows, at, rank), **motion_texts(motion[at])} for at, rank in enumerate(common)]
    return [{"rank": rank, "texts": texts[at]} for at, rank in enumerate(common) if rank < common[-1]]


def _texts(rows: Sequence[Row], at: int, rank: int) -> dict[str, str]:
    parameters = sum(rank * sum(row.shape) for row in rows if row.role in PARTS)
    texts = {"parameters": f"{parameters:,}"}
    for role in PARTS:
        values = [row.held[at] for row in of_role(once(rows), role)]
        if values:
            texts[role] = percent(median(values))
            texts[f"{role}-range"] = f"{percent(min(values))} to {percent(max(values))} over {len(values)} layers"
    survival = [row.cuts.bottom_survival[at] for row in of_role(once(rows), "v")]
    if survival:
        texts["survival"] = number(median(survival))
        ends = f"{number(min(survival))} to {number(max(survival))}"
        texts["survival-range"] = f"of it survives nearest rounding to bfloat16; {ends} over the layers"
    return texts
