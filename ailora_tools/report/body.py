"""What the sections collect: HTML, anchors, figures with their still pictures, and the maps with their menus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ..metrics.definitions import BY_KEY
from .drawing import settled
from .still import still
from .words import raised, typeset

_GROUPS = {"change": "Of the change", "matrix": "Of the matrix"}


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
        told = f'<p class="lead">{raised(lead)}</p>' if lead else ""
        self.html += f'<section id="{anchor}"><h2>{escape(title)}</h2>{told}{body}</section>\n'

    def card(self, name: str, title: str, text: str, figure: Any, more: str = "") -> str:
        """A figure with a title and one sentence on how to read it (both plain text); "" if it has no values."""
        if not any(value is not None for trace in figure["data"] for value in trace.get("y", ())):
            return ""
        caption = f"<h3>{typeset(title)}</h3><p>{typeset(text)}</p>"
        return self._figure(name, caption, title, figure, more)

    def map(self, name: str, overview: dict[str, Any], first: str) -> str:
        """A map layer x role with the menu of its metrics."""
        for key, values in overview["maps"].items():
            values["meaning"] = typeset(f"{BY_KEY[key].formula}. {BY_KEY[key].meaning}")
        self.overviews[name] = overview
        shown = overview["maps"][first]
        _show(overview["figure"], shown)
        caption = (
            f'<div class="choose"><label>Metric <select data-map="{name}">{"".join(_menu(overview["maps"], first))}'
            f'</select></label></div><h3 data-name="{name}">{escape(shown["label"])}</h3>'
            f'<p data-meaning="{name}">{shown["meaning"]}</p>'
        )
        figure = overview["figure"]
        return self._figure(f"map-{name}", caption, "Map of layers and matrices", figure, f' data-map="{name}"')

    def _figure(self, name: str, caption: str, title: str, figure: Any, more: str) -> str:
        self.figures[name] = settled(figure)
        height = figure["layout"]["height"]
        return (
            f'<figure class="card" id="fig-{name}"><figcaption>{caption}</figcaption>'
            f'<div class="figure" role="img" tabindex="0" aria-label="{escape(title)}" data-figure="{name}"{more} '
            f'style="height:{height}px">{still(figure)}<div class="live"></div></div></figure>'
        )


def _show(figure: dict[str, Any], values: Mapping[str, Any]) -> None:
    """What page.js does when the menu chooses a metric."""
    trace = figure["data"][0]
    low, high = values["range"]
    trace |= {"z": values["z"], "text": values["text"], "zmin": low, "zmax": high}
    trace["colorbar"] |= {"tickvals": values["ticks"]["values"], "ticktext": values["ticks"]["texts"]}


def _menu(maps: Mapping[str, Any], first: str) -> Iterator[str]:
    """The options, in groups where there are both metrics of the matrix and of its change."""
    kinds = list(dict.fromkeys(values["of"] for values in maps.values()))
    for kind in kinds:
        options = "".join(
            f'<option value="{key}"{" selected" if key == first else ""}>{escape(values["label"])}</option>'
            for key, values in maps.items()
            if values["of"] == kind
        )
        yield f'<optgroup label="{_GROUPS[kind]}">{options}</optgroup>' if len(kinds) > 1 else options
