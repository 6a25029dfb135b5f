"""What the sections collect: HTML, anchors, figures, and the maps with their menus."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ..metrics.definitions import BY_KEY
from .words import typeset


@dataclass
class Parts:
    """What `build` collects: HTML, anchors for the navigation, figures by name, maps with menus by name."""

    html: str = ""
    anchors: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    overviews: dict[str, Any] = field(default_factory=dict)

    def section(self, anchor: str, title: str, lead: str, body: str) -> None:
        """Append a section with its place in the navigation; `lead` and `body` are HTML."""
        self.anchors.append((anchor, title))
        self.html += (
            f'<section id="{anchor}"><h2>{escape(title)}</h2><p class="lead">{_raised(lead)}</p>{body}</section>\n'
        )

    def card(self, name: str, title: str, text: str, figure: Any, more: str = "") -> str:
        """A figure with a title and one sentence on how to read it (both plain text); "" if it has no values."""
        if not any(value is not None for trace in figure["data"] for value in trace.get("y", ())):
            return ""
        self.figures[name] = figure
        return (
            f'<div class="card"><h3>{typeset(title)}</h3><p>{typeset(text)}</p>'
            f'<div class="figure" role="img" aria-label="{escape(title)}" data-figure="{name}"{more}></div></div>'
        )

    def map(self, name: str, overview: dict[str, Any], first: str) -> str:
        """A map layer x role with the menu of its metrics."""
        for key, values in overview["maps"].items():
            values["meaning"] = f"{BY_KEY[key].formula}. {BY_KEY[key].meaning}"
        self.overviews[name] = overview
        self.figures[f"map-{name}"] = overview["figure"]
        options = "".join(
            f'<option value="{key}"{" selected" if key == first else ""}>{escape(values["label"])}</option>'
            for key, values in overview["maps"].items()
        )
        return (
            f'<div class="card"><div class="choose"><label>Metric <select data-map="{name}">{options}</select></label>'
            f'</div><p data-meaning="{name}"></p><div class="figure" role="img" aria-label="Map of layers and roles" '
            f'data-figure="map-{name}" data-map="{name}" style="min-height:120px"></div></div>'
        )


def _raised(html: str) -> str:
    """Superscripts in a lead that is HTML already."""
    return re.sub(r"W\^([QKVO])\b", r"W<sup>\1</sup>", html)
