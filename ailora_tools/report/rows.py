"""What the report reads of one matrix in analysis.json, typed, and what its parts ask of all rows alike.

The schema of the file, with every field, is output/analysis.schema.json. Names and order of the metrics are those of
`metrics.definitions`; they stay mappings, because figures, maps and the table go through them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..methods import METHODS, Q_AND_V_FIRST
from .stacks import in_blocks, in_order

Metrics = Mapping[str, Any]  # key of a definition -> number, None where it is undefined
Place = tuple[str, int]  # (stack, layer)

AILORA = METHODS["ailora"].rules  # role -> "principal" or "minor", what AILoRA gives to the adapter of each
PARTS = {role: {"principal": "top", "minor": "bottom"}[rule] for role, rule in AILORA.items()}


@dataclass(frozen=True)
class Cuts:
    """What a cut at each of `ranks` (ascending) would hold, as shares of 0 to 1.

    energy: "top" and "bottom" -> share of the energy in the r largest and in the r smallest components.
    bottom_survival: predicted survival of a surgery on the r smallest, stored in bfloat16.
    """

    ranks: Sequence[int]
    energy: Mapping[str, Sequence[float]]
    bottom_survival: Sequence[float]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Cuts:
        """From the field "cuts" of a matrix."""
        energy = {part: record[f"{part}_energy"] for part in ("top", "bottom")}
        return cls(record["ranks"], energy, record["bottom_survival"])

    def at(self, rank: int) -> int:
        """Index of the largest stated rank up to `rank`."""
        return max(at for at, value in enumerate(self.ranks) if value <= rank)


@dataclass(frozen=True)
class Placement:
    """Where in the spectrum of W its change lies.

    deciles: "output", "input" (left, right singular vectors) and "chance_output", "chance_input" -> ten shares of the
    change's energy, strongest tenth of the directions first.
    overlaps: "top" and "bottom" -> overlap of the subspace before and after, for each side that has one.
    intruders: (new, of): leading left singular vectors that no vector before resembles; None if not looked for.
    """

    deciles: Mapping[str, Sequence[float]]
    overlaps: Mapping[str, Sequence[float]]
    intruders: tuple[int, int] | None

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Placement:
        """From the field "placement" of a change."""
        overlaps = {
            part: [record[key] for key in (f"{part}_output_overlap", f"{part}_input_overlap") if key in record]
            for part in ("top", "bottom")
        }
        intruders = (record["intruders"], record["intruders_of"]) if "intruders" in record else None
        return cls(record["deciles"], overlaps, intruders)

    def share(self, tenth: int) -> float:
        """Of the change, in one tenth of the directions: mean of both sides."""
        return (self.deciles["output"][tenth] + self.deciles["input"][tenth]) / 2

    def chance(self, tenth: int) -> float:
        """What `share` would be for a change without any preferred directions."""
        return (self.deciles["chance_output"][tenth] + self.deciles["chance_input"][tenth]) / 2

    def overlap(self, part: str) -> float | None:
        """Mean over the sides of W that have one; 1 if the subspace did not move."""
        known = self.overlaps[part]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Change:
    """What one fine-tune did to the matrix; `placement` is None where nothing changed.

    singular_values: of the change ΔW, descending. quantiles: of the elements after tuning, at the row's levels.
    """

    metrics: Metrics
    placement: Placement | None
    singular_values: Sequence[float]
    quantiles: Sequence[float]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Change:
        """From an entry of the field "changes" of a matrix."""
        placement = Placement.read(record["placement"]) if record["placement"] else None
        quantiles = record["elements_after"]["quantiles"]
        return cls(record["metrics"], placement, record["delta_singular_values"], quantiles)


@dataclass(frozen=True)
class Row:
    """One matrix W of shape (out, in).

    label: such as "q 3" or "v decoder cross 3". dtype: as stored.
    singular_values: descending; those below `floor` are not resolved.
    quantiles: of the elements, at `quantile_levels`.
    heads: key of a metric -> number, one mapping a head; empty where heads were not looked at.
    changes: one for each fine-tune of the analysis, in its order.
    unit: what `layer` counts: "block" where many short stacks were numbered through.
    """

    label: str
    role: str
    layer: int
    stack: str
    tensor: str
    module: str
    shape: tuple[int, int]
    dtype: str
    singular_values: Sequence[float]
    floor: float
    metrics: Metrics
    cuts: Cuts
    quantile_levels: Sequence[float]
    quantiles: Sequence[float]
    heads: Sequence[Mapping[str, float]]
    changes: Sequence[Change]
    unit: str = "layer"

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Row:
        """From an entry of the field "matrices" of analysis.json."""
        names = ("label", "role", "layer", "stack", "tensor", "module", "dtype", "metrics")
        return cls(
            **{name: record[name] for name in names},
            shape=(record["shape"][0], record["shape"][1]),
            singular_values=record["spectrum"]["singular_values"],
            floor=record["spectrum"]["floor"],
            cuts=Cuts.read(record["cuts"]),
            quantile_levels=record["elements"]["quantile_levels"],
            quantiles=record["elements"]["quantiles"],
            heads=record["heads"] or (),
            changes=[Change.read(change) for change in record["changes"]],
        )

    @property
    def place(self) -> Place:
        """The stack and the layer, which W^Q and W^V of one attention share."""
        return self.stack, self.layer

    @property
    def held(self) -> Sequence[float]:
        """Share of the energy that AILoRA would move out of W, at each of the ranks of `cuts`."""
        return self.cuts.energy[PARTS[self.role]]


def read_rows(document: Mapping[str, Any]) -> list[Row]:
    """All matrices of an analysis document, in its order; the attention blocks of a UNet numbered through."""
    rows = [Row.read(record) for record in document["matrices"]]
    blocks = in_blocks(row.place for row in rows)
    return [_in_block(row, *blocks[row.place]) for row in rows] if blocks else rows


def _in_block(row: Row, stack: str, layer: int) -> Row:
    label = " ".join(part for part in (row.role, stack, str(layer)) if part)
    return replace(row, stack=stack, layer=layer, label=label, unit="block")


def roles(rows: Iterable[Row], order: Sequence[str] = Q_AND_V_FIRST) -> list[str]:
    """The roles that were analysed: those in `order`, then others as they come."""
    there = dict.fromkeys(row.role for row in rows)
    return [*(role for role in order if role in there), *(role for role in there if role not in order)]


def stacks(rows: Iterable[Row]) -> list[str]:
    """The stacks that the rows lie in, encoders first."""
    return in_order(row.stack for row in rows)


def of_stack(rows: Iterable[Row], stack: str) -> list[Row]:
    """The rows of one stack."""
    return [row for row in rows if row.stack == stack]


def of_role(rows: Iterable[Row], role: str) -> list[Row]:
    """The rows of one role."""
    return [row for row in rows if row.role == role]


def identity(row: Row, at: int | None = None) -> Hashable:
    """What two matrices have in common only if they hold the same numbers: all singular values, to the ten digits that
    are kept; with `at` also those of the change by fine-tune number `at`. Copies are no further evidence: layers of a
    model that was stacked out of another, or tied ones."""
    own = (row.shape, tuple(row.singular_values))
    return own if at is None else (*own, tuple(row.changes[at].singular_values))


def copies(rows: Iterable[Row], at: int | None = None) -> dict[str, str]:
    """Label of each matrix that was there before under the same role -> label of the first."""
    first: dict[Hashable, str] = {}
    found = {}
    for row in rows:
        label = first.setdefault((row.role, identity(row, at)), row.label)
        if label != row.label:
            found[row.label] = label
    return found


def once(rows: Iterable[Row], at: int | None = None) -> list[Row]:
    """The rows without copies: what medians and counts of independent matrices go over."""
    held = list(rows)
    left_out = copies(held, at)
    return [row for row in held if row.label not in left_out]


def change_metric(at: int, key: str) -> Callable[[Row], float | None]:
    """What reads one metric of the change by fine-tune number `at`."""
    return lambda row: row.changes[at].metrics[key]


def distinct_pairs(
    rows: Iterable[Row], value: Callable[[Row], float | None], at: int | None = None
) -> dict[Place, tuple[float, float]]:
    """`pairs` without the places whose W^Q and W^V both are copies of one place before, for sign tests."""
    held = list(rows)
    places: dict[Place, dict[str, Hashable]] = {}
    for row in held:
        places.setdefault(row.place, {})[row.role] = identity(row, at)
    seen: dict[Hashable, Place] = {}
    first = {place: seen.setdefault((of.get("q"), of.get("v")), place) for place, of in places.items()}
    return {place: pair for place, pair in pairs(held, value).items() if first[place] == place}


def pairs(rows: Iterable[Row], value: Callable[[Row], float | None]) -> dict[Place, tuple[float, float]]:
    """(value of W^Q, value of W^V) at every place that has both; in the order of the rows."""
    places: dict[Place, dict[str, float]] = {}
    for row in rows:
        if (known := value(row)) is not None:
            places.setdefault(row.place, {})[row.role] = known
    return {place: (found["q"], found["v"]) for place, found in places.items() if {"q", "v"} <= found.keys()}
