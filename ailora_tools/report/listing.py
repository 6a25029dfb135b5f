"""index.html of a folder of reports: what lies in it, searchable, with links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any
from urllib.parse import quote

from ..methods import symbol
from .body import Parts
from .frame import Frame, framed
from .rows import of_role, once, read_rows, roles
from .words import percent, typeset

_HEAD = ("report", "folder", "model", "compared with", "layers", "matrices", "directions in use", "made")


def render_listing(name: str, found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The page as HTML; `found`: the address of each report as seen from the page, and its document."""
    head = "".join(f'<th scope="col"><button type="button">{text}</button></th>' for text in _HEAD)
    body = "".join(_row(address, document) for address, document in found)
    tools = (
        '<div class="choose needs-script"><label>Filter <input type="search" id="filter" autocomplete="off" '
        'placeholder="llama, base"></label><output id="shown"></output></div>'
    )
    parts = Parts()
    parts.section(
        "table", "Reports", f"{len(found)} reports. Sort by any column; a name opens its page.",
        f'{tools}<div class="scroll" tabindex="0" role="region" aria-label="Reports"><table><caption>One row a report.'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
    )  # fmt: skip
    frame = Frame(
        title=f"Reports in {name}", kind="Spectra of attention weights", heading=f"Reports in {escape(name)}", facts=[],
        footer="<p>Made again by</p><pre>ailora-tools report FOLDER</pre>", slug="reports",
    )  # fmt: skip
    return framed(parts, frame, {"document": [document["model"] for _, document in found], "csv": _csv(found)})


def _row(address: str, document: Mapping[str, Any]) -> str:
    rows = read_rows(document)
    tuned = ", ".join(str(other["name"]) for other in document["against"])
    used = []
    for role in roles(rows)[:2]:
        known = [
            value for row in once(of_role(rows, role)) if (value := row.metrics["effective_rank_share"]) is not None
        ]
        used += [f"{symbol(role)} {percent(median(known))}"] if known else []
    layers, first = len({row.place for row in rows}), used[0] if used else "–"
    model = document["model"]
    folder = address.rpartition("/")[0] or "."
    cells = (
        (folder, folder), (model["family"], model["family"]), (tuned, tuned), (layers, str(layers)),
        (len(rows), str(len(rows))),
        (first, ", ".join(used)),
        (document["created"], document["created"].replace("T", " ").removesuffix("Z")),
    )  # fmt: skip
    written = "".join(f'<td data-value="{escape(str(key))}">{typeset(text)}</td>' for key, text in cells)
    return (
        f'<tr><th scope="row" data-value="{escape(model["name"])}" title="{escape(model["location"])}">'
        f'<a href="{escape(quote(address))}">{escape(model["name"])}</a></th>{written}</tr>'
    )


def _csv(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    return "report\n" + "".join('"' + address.replace('"', '""') + '"\n' for address, _ in found)
