"""What stands around the sections of every page: header, navigation, style, scripts, and the data they carry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from .body import Parts
from .packed import packed, packed_plotly
from .words import typeset

_SCRIPTS = ("page.js", "layers.js", "table.js")


@dataclass(frozen=True)
class Frame:
    """What stands around the sections. `title`, `kind` and `facts` (name, value) are plain text, `heading` and
    `footer` HTML; `slug` names the downloads, `gist` is a line of plain text under the heading."""

    title: str
    kind: str
    heading: str
    facts: Sequence[tuple[str, str]]
    footer: str
    slug: str
    gist: str = ""


def framed(parts: Parts, frame: Frame, data: Mapping[str, Any]) -> str:
    """One page in this style, as HTML. `data` holds what page.js needs besides figures: "document" and "csv" to
    download, and "ranks" if there is a slider."""
    carried = {"figures": parts.figures, "overviews": parts.overviews, "slug": frame.slug, **data}
    return Template(_resource("page.html")).substitute(
        title=escape(frame.title),
        kind=escape(frame.kind),
        css=_resource("page.css"),
        heading=frame.heading,
        gist=escape(frame.gist),
        facts="".join(f"<div><dt>{escape(key)}</dt><dd>{typeset(value)}</dd></div>" for key, value in frame.facts),
        about="" if frame.facts else "hidden",
        nav="".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in parts.anchors),
        body=parts.html,
        footer=frame.footer,
        data=packed(json.dumps(carried, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
        plotly=packed_plotly() if parts.figures else "",
        js="".join(_resource(name) for name in _SCRIPTS),
    )


def _resource(name: str) -> str:
    return files("ailora_tools").joinpath(f"report/{name}").read_text(encoding="utf-8")
