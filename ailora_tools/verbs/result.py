"""What the results of all verbs have in common: one line in an interpreter, a table in a notebook, rows for pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from ..errors import AiloraError

_SHOWN = 12  # rows of a table in a notebook
_CELL = "padding:2px 12px 2px 0;text-align:left"


class Result:
    """A result that does not print all it holds. `_held` is the field with its records, dataclasses; `_columns` are
    those of its rows that a notebook shows."""

    _held: str = "modules"
    _columns: Sequence[str] = ()

    def told(self) -> str:
        """What it is of and how it turned out, in one line."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """One record for each thing in it, such as a module or a check."""
        return [asdict(record) for record in getattr(self, self._held)]

    def to_dataframe(self) -> Any:
        """`rows` as a pandas.DataFrame. AiloraError where pandas is not installed: this package does not need it."""
        try:
            import pandas  # type: ignore[import-untyped]
        except ImportError:
            raise AiloraError(
                "to_dataframe() makes a pandas.DataFrame, and pandas is not installed.",
                "pip install pandas, or take rows(), the same as dictionaries.",
            ) from None
        return pandas.DataFrame(self.rows())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.told()}>"

    def _repr_html_(self) -> str:
        return f"<p><b>{type(self).__name__}</b> {escape(self.told())}</p>{html_table(self.rows(), self._columns)}"


def html_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The first rows as an HTML table, and how many there are more."""
    if not rows:
        return ""
    heads = _line("th", columns)
    body = "".join(_line("td", (_cell(row[name]) for name in columns)) for row in rows[:_SHOWN])
    more = f"<p>… {len(rows) - _SHOWN} more in <code>to_dataframe()</code></p>" if rows[_SHOWN:] else ""
    return f"<table><thead>{heads}</thead><tbody>{body}</tbody></table>{more}"


def _line(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
