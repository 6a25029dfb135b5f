"""Several analyses on one page: sizes of a family, a base and its relatives.

Depth is relative, so that models with other numbers of layers stand beside each other; nothing is smoothed: each place
shows the layer that is nearest. Stacks of one model are lines of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from ..methods import symbol
from ..metrics.definitions import BY_KEY, DEFINITIONS, Definition
from ..metrics.noise import noise_effective_rank_share
from ..output.analysis import metrics_csv
from .body import Parts
from .drawing import Figure, layout_for, short
from .embedded import embedded
from .frame import Frame, framed
from .maps import metric_map
from .rows import Row, of_role, of_stack, once, read_rows, roles, stacks
from .stacks import counted
from .words import percent, spread, typeset

_COLOURS = ("#2f83c5", "#d9700d", "#009e73", "#b8609a", "#8c6d1f", "#5b6ee1", "#c2453d", "#3f8f8f")
_DASHES = ("solid", "dash", "dot", "dashdot")
_PLACES = 24  # of relative depth that the map has
_SHARES = 100  # of a spectrum
_LINES = ("effective_rank_share", "outlier_share", "stable_rank_share", "spectral_norm")
_COLUMNS = (
    "effective_rank_share", "stable_rank_share", "rank_90_share", "outlier_share", "outlier_energy", "frobenius_norm",
    "spectral_norm", "condition", "alpha",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """One analysis: a name that no other has, and its matrices."""

    name: str
    document: Mapping[str, Any]
    rows: Sequence[Row]
    at: int

    @property
    def style(self) -> dict[str, Any]:
        """Of its lines."""
        return {"color": _COLOURS[self.at % len(_COLOURS)], "dash": _DASHES[self.at // len(_COLOURS) % 4], "width": 2}

    def lines(self, role: str) -> list[tuple[str, list[Row]]]:
        """Name and matrices of one role from first to last, for each stack."""
        of = of_role(self.rows, role)
        return [(f"{self.name} {stack}".strip(), of_stack(of, stack)) for stack in stacks(of)]


def render_comparison(documents: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML, for two analyses or more."""
    models = [Model(name, document, read_rows(document), at)
              for at, (name, document) in enumerate(zip(_names(documents), documents, strict=True))]  # fmt: skip
    there = roles([row for model in models for row in model.rows])
    parts = Parts()
    parts.html += _first(parts, models, there)
    parts.section(
        "overview", "Models at a glance",
        "One line a matrix of a model, from its first layer at the left to its last; colours are the same for all.",
        parts.map("models", _map(models, there), "effective_rank_share"),
    )  # fmt: skip
    parts.section(
        "spectra", "Spectra side by side",
        "Medians over the layers of each model: singular values over the largest of their matrix, against their place.",
        f'<div class="grid">{"".join(_spectra_card(parts, models, role) for role in there)}</div>',
    )  # fmt: skip
    cards = [_line_card(parts, models, role, key) for key in _LINES for role in there]
    parts.section("depth", "Over the depth", "Each point is a layer.", f'<div class="grid">{"".join(cards)}</div>')
    parts.section("table", "Medians with their ranges", "Median (least to greatest) over the matrices, copies once.",
                  _table(models))  # fmt: skip
    names = ", ".join(model.name for model in models)
    frame = Frame(
        title=f"{names}: compared", kind="Spectra of attention weights", heading=f"{len(models)} models compared",
        facts=[(model.name, f"{model.document['model']['location']}, {model.document['created']}") for model in models],
        footer=f"<p>{escape(names)}</p>", slug="comparison", gist=names,
    )  # fmt: skip
    return framed(
        parts,
        frame,
        {
            "document": {"compared": [embedded(document) for document in documents]},
            "csv": _csv(models),
            "unit": "depth",
        },
    )


def _names(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """The models' own, with the folder above where two are alike, and a number where that is not enough."""
    names = [document["model"]["name"] for document in documents]
    for at, document in enumerate(documents):
        parts = document["model"]["location"].rstrip("/").split("/")
        if names.count(document["model"]["name"]) > 1 and len(parts) > 1:
            names[at] = "/".join(parts[-2:])
    return [
        f"{name} ({names[: at + 1].count(name)})" if names.count(name) > 1 else name for at, name in enumerate(names)
    ]


def _first(parts: Parts, models: Sequence[Model], there: Sequence[str]) -> str:
    """Who uses most of its directions, and the lines over the depth."""
    role = there[0]
    each = [(_median(model, role, "effective_rank_share"), model.name) for model in models]
    middle = {name: value for value, name in each if value is not None}
    ordered = sorted(middle, key=lambda name: -middle[name])
    answer = "; ".join(f"{name} {percent(middle[name])}" for name in (ordered[0], ordered[-1])) if middle else ""
    said = f"Most and fewest directions in use in {symbol(role)}: {answer}." if len(ordered) > 1 else ""
    boxes = "".join(_box(model, there) for model in models[:4])
    figure = _by_depth(models, role, BY_KEY["effective_rank_share"], height=250)
    card = parts.card("first", f"Directions in use of {symbol(role)}, first layer to last", "A point a layer.", figure)
    return (
        f'<section id="first" aria-label="At a glance"><p class="answer">{typeset(said)}</p>'
        f'<div class="glance">{card}<div class="keys">{boxes}</div></div></section>\n'
    )


def _box(model: Model, there: Sequence[str]) -> str:
    layers = counted((row.place for row in model.rows), model.rows[0].unit)
    return (
        f'<div><span class="label">{escape(model.name)}</span><strong>{_medians(model, there)}</strong><span>'
        f"directions in use; noise {_noise(model, there)}; {layers}</span></div>"
    )


def _medians(model: Model, there: Sequence[str]) -> str:
    told = {role: _median(model, role, "effective_rank_share") for role in there[:2]}
    return " ".join(
        f'<b class="role {escape(role)}">{typeset(symbol(role))} {percent(value)}</b>'
        for role, value in told.items()
        if value is not None
    )


def _noise(model: Model, there: Sequence[str]) -> str:
    known = [noise_effective_rank_share(row.shape) for row in model.rows if row.role in there[:2]]
    return spread(known, shares=True) if known else "–"


def _median(model: Model, role: str, key: str) -> float | None:
    known = [row.metrics[key] for row in once(of_role(model.rows, role)) if row.metrics[key] is not None]
    return median(known) if known else None


def _map(models: Sequence[Model], there: Sequence[str]) -> dict[str, Any]:
    """Rows of each role together, so that models are seen beside each other."""
    lines = [(name, role, rows) for role in there for model in models for name, rows in model.lines(role)]
    depths = [f"{round(100 * place / (_PLACES - 1))}" for place in range(_PLACES)]
    nearest = [[rows[round(place * (len(rows) - 1) / (_PLACES - 1))] for place in range(_PLACES)] for *_, rows in lines]
    maps = {
        of.key: metric_map(of, [[row.metrics[of.key] for row in line] for line in nearest])
        for of in DEFINITIONS if of.of == "matrix"
    }  # fmt: skip
    data = {
        "type": "heatmap", "x": depths, "y": [f"{typeset(symbol(role))} {typeset(name)}" for name, role, _ in lines],
        "xgap": 1, "ygap": 2, "colorscale": "Cividis", "hoverongaps": False,
        "colorbar": {"thickness": 12, "outlinewidth": 0}, "meta": [[name, role] for name, role, _ in lines],
        "customdata": [[typeset(row.tensor) for row in line] for line in nearest],
    }  # fmt: skip
    layout = layout_for("relative depth, %", "", height=96 + 34 * len(lines))
    layout["xaxis"] |= {"type": "category", "tickangle": 0}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "ticks": ""}
    return {"figure": {"data": [data], "layout": layout}, "maps": maps}


def _line(model: Model, name: str, x: Sequence[float], y: Sequence[float | None]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines+markers" if len(x) < 60 else "lines", "x": [short(value) for value in x],
        "y": [None if value is None else short(value) for value in y], "name": typeset(name),
        "line": model.style, "marker": {"size": 5, "color": model.style["color"]},
        "hovertemplate": f"%{{x:.3g}} %<br>%{{y:.4g}}<extra>{typeset(name)}</extra>",
    }  # fmt: skip


def _by_depth(models: Sequence[Model], role: str, of: Definition, height: int = 360) -> Figure:
    data = []
    for model in models:
        for at, (name, rows) in enumerate(model.lines(role)):
            depth = [100 * place / max(1, len(rows) - 1) for place in range(len(rows))]
            line = _line(model, name, depth, [row.metrics[of.key] for row in rows])
            data.append(line | {"line": model.style | {"dash": _DASHES[at % 4]}})
    layout = layout_for("relative depth, %", of.label, height=height, legend=True, zero=True)
    layout["margin"]["t"] = 22 + 22 * min(4, -(-len(data) // 3))
    return {"data": data, "layout": layout}


def _line_card(parts: Parts, models: Sequence[Model], role: str, key: str) -> str:
    of = BY_KEY[key]
    return parts.card(f"{key}-{role}", f"{of.label} of {symbol(role)}", of.meaning, _by_depth(models, role, of))


def _spectra_card(parts: Parts, models: Sequence[Model], role: str) -> str:
    data = []
    for model in models:
        rows = [row for row in once(of_role(model.rows, role)) if row.singular_values[0]]
        if rows:
            each = [[_relative(row, share) for row in rows] for share in range(_SHARES + 1)]
            values = [median(of) for of in each]
            points = [(share, value) for share, value in enumerate(values) if value > 0]
            data.append(_line(model, model.name, [x for x, _ in points], [y for _, y in points]) | {"mode": "lines"})
    layout = layout_for("place in the spectrum, % (0 = largest)", f"s / s₁ of {symbol(role)}", log_y=True, legend=True)
    figure = {"data": data, "layout": layout}
    return parts.card(f"spectra-{role}", f"Spectrum of {symbol(role)}", "Steeper: fewer directions matter.", figure)


def _relative(row: Row, share: int) -> float:
    values = row.singular_values
    value = values[round(share * (len(values) - 1) / _SHARES)]
    return value / values[0] if value >= row.floor else 0.0


def _table(models: Sequence[Model]) -> str:
    head = "".join(
        f'<th scope="col"><button type="button" title="{escape(BY_KEY[key].meaning)}">{escape(BY_KEY[key].label)}'
        "</button></th>"
        for key in _COLUMNS
    )
    body = "".join(_table_rows(models))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Medians of all models"><table><caption>One row '
        f'a model and matrix.</caption><thead><tr><th scope="col"><button type="button">model</button>'
        f"</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _table_rows(models: Sequence[Model]) -> Iterator[str]:
    for model in models:
        for role in roles(model.rows):
            cells = ""
            for key in _COLUMNS:
                known = [row.metrics[key] for row in once(of_role(model.rows, role)) if row.metrics[key] is not None]
                text, value = (typeset(spread(known)), median(known)) if known else ("–", "")
                cells += f'<td data-value="{value}">{text}</td>'
            name = f'<b class="role {escape(role)}">{typeset(symbol(role))}</b> {escape(model.name)}'
            yield f'<tr><th scope="row" data-value="{escape(model.name)} {escape(role)}">{name}</th>{cells}</tr>'


def _csv(models: Sequence[Model]) -> str:
    """metrics.csv of all, with the model in front."""
    lines: list[str] = []
    for model in models:
        head, *rest = metrics_csv(model.document).splitlines()
        name = '"' + model.name.replace('"', '""').lstrip("=+-@\t\r") + '"'
        lines += [f"model,{head}"] if not lines else []
        lines += [f"{name},{line}" for line in rest]
    return "\n".join(lines) + "\n"
