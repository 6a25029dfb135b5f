"""report.html: one file without outside requests, from an analysis document. Everything named in it is escaped."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from ..output.analysis import metrics_csv
from . import sections
from .body import Parts
from .motions import by_rank, motion_texts
from .rows import PARTS, Row, copies, of_role, once, read_rows, roles
from .words import matrix, number, percent, size, spread, typeset

_EMBEDDED = 1_500_000  # bytes of the document that the page carries whole; beyond, spectra are thinned
_KEPT = 64  # values of a thinned spectrum
_LISTS = ("singular_values", "delta_singular_values", "singular_values_after")


def render(document: Mapping[str, Any]) -> str:
    """The report as HTML text."""
    rows = read_rows(document)
    frame = Frame(
        title=f"{document['model']['name']}: spectra of W^Q and W^V",
        kind="Spectra of attention weights",
        heading=_heading(document),
        facts=_facts(document, rows),
        footer=_footer(document),
        slug=re.sub(r"[^\w.-]+", "-", document["model"]["name"]) or "analysis",
    )
    downloads = {"document": embedded(document), "csv": metrics_csv(document)}
    return framed(sections.build(document, rows), frame, downloads | {"ranks": _held(rows)})


@dataclass(frozen=True)
class Frame:
    """What stands around the sections. `title`, `kind` and `facts` (name, value) are plain text, `heading` and
    `footer` HTML; `slug` names the downloads."""

    title: str
    kind: str
    heading: str
    facts: Sequence[tuple[str, str]]
    footer: str
    slug: str


def framed(parts: Parts, frame: Frame, data: Mapping[str, Any]) -> str:
    """One page in this style, as HTML. `data` holds what page.js needs besides figures: "document" and "csv" to
    download, and "ranks" if there is a slider."""
    carried = {"figures": parts.figures, "overviews": parts.overviews, "slug": frame.slug, **data}
    return Template(_resource("page.html")).substitute(
        title=escape(frame.title),
        kind=escape(frame.kind),
        css=_resource("page.css"),
        heading=frame.heading,
        facts="".join(f"<div><dt>{escape(key)}</dt><dd>{typeset(value)}</dd></div>" for key, value in frame.facts),
        nav="".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in parts.anchors),
        body=parts.html,
        footer=frame.footer,
        data=_inert(json.dumps(carried, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
        plotly=plotly_script(),
        js=_resource("page.js"),
    )


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
    matrices = ", ".join(f"{len(of_role(rows, role))} × {matrix(role)}" for role in roles(rows))
    found = [
        ("model", kind),
        ("revision", model["revision"] or "local files"),
        ("analysed", matrices),
        ("shapes", ", ".join(sorted({" × ".join(map(str, row.shape)) for row in rows}))),
        ("stored as", ", ".join(sorted({row.dtype for row in rows}))),
        ("read", f"{size(model['bytes_read'])} of {size(model['bytes_total'])}" + tuned),
        ("took", f"{number(document['seconds'])} s"),
        ("made", document["created"].replace("T", " ").replace("Z", " UTC")),
    ]
    if copied := copies(rows):
        found.append(("copies", f"{len(copied)} matrices, counted once"))
    if document["skipped"]:
        found.append(("left out", f"{len(document['skipped'])} matrices"))
    return found


def _footer(document: Mapping[str, Any]) -> str:
    """Versions, places and settings, as HTML."""
    tool = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in document["tool"].items())
    places = [document["model"]["location"], *(other["location"] for other in document["against"])]
    settings = ", ".join(f"{key} {value}" for key, value in document["settings"].items() if value not in (None, False))
    return f"<p>{escape(tool)}</p><p>{escape('; '.join(places))}</p><p>{escape(settings)}</p>"


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
        texts["survival-range"] = f"of it survives nearest rounding to bfloat16 ({spread(survival)})"
    return texts


def plotly_script() -> str:
    """plotly.js as the installed plotly package carries it, without importing the package."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:  # a dependency, so only a broken installation lacks it
        raise ModuleNotFoundError("plotly is not installed")
    text = (Path(next(iter(spec.submodule_search_locations))) / "package_data" / "plotly.min.js").read_text("utf-8")
    return text.replace("</script", "<\\/script")


def _inert(text: str) -> str:
    """JSON that no HTML parser can leave: names in it are hostile."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _resource(name: str) -> str:
    return files("ailora_tools").joinpath(f"report/{name}").read_text(encoding="utf-8")
