"""The table of all matrices: changes first, columns in groups to choose from, rows to filter and to copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..metrics.definitions import BY_KEY
from .drawing import line_name
from .rows import Row
from .words import number, raised

_COLUMNS = (
    "effective_rank_share", "stable_rank_share", "rank_90", "outliers", "outlier_energy", "frobenius_norm",
    "spectral_norm", "condition", "alpha", "alpha_tail", "spectrum_snr",
)  # fmt: skip
_CHANGE_COLUMNS = (
    "relative_change", "delta_norm", "delta_above", "delta_above_energy", "rounding_above", "delta_rank_90",
)  # fmt: skip


@dataclass(frozen=True)
class _Column:
    """`at`: number of the fine-tune, None for the matrix itself; `suffix` tells fine-tunes apart."""

    key: str
    at: int | None
    suffix: str = ""

    def value(self, row: Row) -> float | None:
        metrics = row.metrics if self.at is None else row.changes[self.at].metrics
        return metrics[self.key]  # type: ignore[no-any-return]


def table_section(rows: Sequence[Row], document: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Anchor, title, lead and HTML."""
    columns = list(_columns(document["against"]))
    total = len(rows) + len(document["skipped"])
    head = '<th scope="col"><button type="button">matrix</button></th>' + "".join(map(_head, columns))
    body = "".join(_row(at, row, columns) for at, row in enumerate(rows))
    caption = "<caption>One row a matrix; numbers of the fine-tune come first where there is one.</caption>"
    choices = "".join(_choice(at + 1, column) for at, column in enumerate(columns))
    tools = (
        '<div class="choose needs-script"><label>Filter <input type="search" id="filter" autocomplete="off" '
        'placeholder="v, 10-20, encoder"></label><output id="shown"></output>'
        f'<details class="columns"><summary>Columns</summary><div>{choices}</div></details>'
        '<button type="button" id="copy">Copy table</button></div>'
    )
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of all matrices"><table>{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    lead = (
        f"{len(rows)} of {total} matrices. Sort by any column; what each means stands under "
        '<a href="#definitions">Definitions</a>. The CSV holds more.'
    )
    return "table", "All matrices", lead, tools + table


def _columns(tuned: Sequence[Mapping[str, Any]]) -> Iterator[_Column]:
    for at, other in enumerate(tuned):
        suffix = f" ({other['name']})" if len(tuned) > 1 else ""
        yield from (_Column(key, at, suffix) for key in _CHANGE_COLUMNS)
    yield from (_Column(key, None) for key in _COLUMNS)


def _head(column: _Column) -> str:
    of = BY_KEY[column.key]
    title = escape(f"{of.formula}. {of.meaning}")
    group = ' class="change"' if column.at is not None else ""
    label = raised(escape(of.label + column.suffix))
    return f'<th scope="col"{group}><button type="button" title="{title}">{label}</button></th>'


def _choice(at: int, column: _Column) -> str:
    label = raised(escape(BY_KEY[column.key].label + column.suffix))
    return f'<label><input type="checkbox" data-column="{at}" checked> {label}</label>'


def _row(at: int, row: Row, columns: Sequence[_Column]) -> str:
    values = [column.value(row) for column in columns]
    cells = "".join(
        f'<td data-value="{"" if value is None else value}">{"–" if value is None else number(value)}</td>'
        for value in values
    )
    name = f'<b class="role {escape(row.role)}">{line_name(row.role, row.stack)}</b> {row.layer}'
    return (
        f'<tr data-layer="{row.layer}" data-role="{escape(row.role)}" data-stack="{escape(row.stack)}">'
        f'<th scope="row" data-value="{at}" title="{escape(row.tensor)}">{name}</th>{cells}</tr>'
    )
