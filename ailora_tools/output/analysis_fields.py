"""The fields of analysis.json as types: what analysis.schema.json says, for a reader that must not stumble.

A test holds the two together. `require_whole` then asks for what no schema can say: that lists which belong together
have one length, and that what is named is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from ..checkpoint.gate import Amount, Meta, Record, record, require_plain
from ..checkpoint.header import quoted
from ..errors import listed
from ..metrics.definitions import DEFINITIONS

Role = Annotated[str, Meta(pattern=r"^(?:[qkvo]|[A-Za-z_][A-Za-z0-9_]+)$")]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Shape = Annotated[list[Positive], Meta(min_length=2, max_length=2)]
Spectrum = Annotated[list[Amount], Meta(min_length=1)]
Tenths = Annotated[list[Amount], Meta(min_length=10, max_length=10)]
MatrixMetrics = record("MatrixMetrics", {row.key: float | None for row in DEFINITIONS if row.of == "matrix"})
ChangeMetrics = record("ChangeMetrics", {row.key: float | None for row in DEFINITIONS if row.of == "change"})
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles that are drawn


class Singular(Record):
    """Of one matrix."""

    singular_values: Spectrum
    floor: Amount
    route: Literal["gram", "gram+minor", "svd"]


class Cuts(Record):
    """One entry a rank in each list."""

    ranks: list[Positive]
    top_energy: list[float]
    bottom_energy: list[float]
    top_gap: list[float]
    bottom_gap: list[float]
    bottom_survival: list[float]


class Elements(Record, kw_only=True):
    """Distribution of the entries of a matrix."""

    mean: float
    std: float
    min: float
    max: float
    excess_kurtosis: float | None
    zeros: float
    quantiles: list[float]
    quantile_levels: list[float] = None  # type: ignore[assignment]


class Head(Record):
    """One head of a matrix."""

    frobenius_norm: float
    spectral_norm: float
    stable_rank: float
    effective_rank: float


class Deciles(Record):
    """Shares of a change, strongest tenth of the directions first."""

    output: Tenths
    input: Tenths
    chance_output: Tenths
    chance_input: Tenths


class Placement(Record, kw_only=True):
    """Where in the spectrum a change lies."""

    deciles: Deciles
    top_block: Amount
    bottom_block: Amount
    block_chance: Amount
    intruders: Natural = None  # type: ignore[assignment]
    intruders_of: Natural = None  # type: ignore[assignment]
    top_output_overlap: float = 0.0
    top_output_cosine: float = 0.0
    top_input_overlap: float = 0.0
    top_input_cosine: float = 0.0
    bottom_output_overlap: float = 0.0
    bottom_output_cosine: float = 0.0
    bottom_input_overlap: float = 0.0
    bottom_input_cosine: float = 0.0
    output_chance: float = 0.0
    input_chance: float = 0.0


class Change(Record):
    """What one fine-tune did to a matrix."""

    metrics: ChangeMetrics  # type: ignore[valid-type]
    placement: Placement | None
    delta_singular_values: Spectrum
    singular_values_after: Spectrum
    elements_after: Elements
    head_relative_change: list[float | None] | None


class Place(Record, kw_only=True):
    """Which matrix."""

    role: Role
    label: str
    layer: Natural
    stack: str
    tensor: str
    module: str
    shape: Shape
    dtype: str


class Skipped(Place, kw_only=True):
    """A matrix that could not be analysed."""

    reason: str


class Matrix(Place, kw_only=True):
    """One matrix with everything measured of it; copy_of: the label of the one before that holds the same numbers.
    computed_on: what was unlike the first process of the job, where several kinds of machines were allowed."""

    copy_of: str | None = None
    computed_on: str = ""
    spectrum: Singular
    metrics: MatrixMetrics  # type: ignore[valid-type]
    cuts: Cuts
    elements: Elements
    heads: list[Head] | None
    changes: list[Change]


class Model(Record):
    """The analysed checkpoint."""

    name: str
    location: str
    revision: str | None
    model_type: str | None
    family: str
    bytes_total: Natural
    bytes_read: Natural
    heads: dict[str, Any] | None
    shards: dict[str, Any]


class Tuned(Record, kw_only=True):
    """What it is compared with."""

    name: str
    location: str
    revision: str | None = None
    kind: Literal["checkpoint", "adapter"]
    bytes_read: Natural


class Finding(Record, kw_only=True):
    """One sentence and its numbers; it starts with the headline. Files of earlier versions name no kind."""

    id: str
    text: str
    kind: Literal["result", "none", "advice", "warning"] = "result"
    headline: str = ""
    numbers: Annotated[dict[str, float], Meta(min_length=1)]
    against: Natural = 0


class SuggestedRanks(Record):
    """ranks.json, as `analyze --suggest-ranks` puts it into the analysis."""

    format: Literal["ailora-tools ranks"]
    version: Literal[1]
    rule: str
    basis: Literal["change", "weights"]
    budget: Natural
    parameters: Natural
    rank: Positive
    rank_pattern: dict[str, Natural]
    alpha_pattern: dict[str, Natural]


class Chosen(Record):
    """A module, and the one of both by which it was chosen."""

    module: str
    condition: float | None = None
    change: float | None = None


class SuggestedTargets(Record):
    """What `analyze --suggest-targets` puts into the analysis."""

    rule: str
    basis: Literal["change", "condition"]
    of: Natural
    modules: list[Chosen]
    target_modules: list[str]


class Analysis(Record, kw_only=True):
    """The whole file, version 1."""

    format: Literal["ailora-tools analysis"]
    version: Literal[1]
    tool: dict[str, str]
    created: str
    seconds: float
    model: Model
    against: list[Tuned]
    settings: dict[str, Any]
    notices: list[str]
    skipped: list[Skipped]
    findings: list[Finding]
    ranks: SuggestedRanks = None  # type: ignore[assignment]
    targets: SuggestedTargets = None  # type: ignore[assignment]
    thinned: str = ""
    matrices: Annotated[list[Matrix], Meta(min_length=1)]


def require_whole(document: Analysis) -> None:
    """ValueError that says where parts of the document do not belong together."""
    for value in (document.settings, document.model.heads, document.model.shards):
        require_plain(value)
    rank = document.settings.get("rank")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"$.settings.rank: expected an integer from 1, found {quoted(rank)}")
    roles = document.settings.get("roles")
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise ValueError(f"$.settings.roles: expected a list of names, found {quoted(roles)}")
    if "device" not in document.settings:
        raise ValueError("$.settings.device: expected a name, found nothing")
    if document.ranks and not document.ranks.rule:
        raise ValueError("$.ranks.rule: expected a sentence, found nothing")
    if fault := _wrong_targets(document):
        raise ValueError(f"$.targets: {fault}")
    for at, row in enumerate(document.matrices):
        for fault in _faults(row, document, rank):
            raise ValueError(f"$.matrices[{at}]: {fault}")


def _wrong_targets(document: Analysis) -> str:
    found, known = document.targets, {row.module for row in document.matrices}
    if not found:
        return ""
    names = [one.module for one in found.modules]
    if not names or sorted(names) != sorted(set(found.target_modules)):
        return f"modules and target_modules name different ones, {quoted(names)} and {quoted(found.target_modules)}"
    if strangers := [quoted(name) for name in names if name not in known]:
        return f"{listed(strangers)} have no matrices"
    if any(getattr(one, found.basis) is None for one in found.modules):
        return f"a module has no {found.basis}"
    return "the basis is change, and against is empty" if found.basis == "change" and not document.against else ""


def _faults(row: Matrix, document: Analysis, rank: int) -> Iterator[str]:
    yield from _unequal({name: getattr(row.cuts, name) for name in Cuts.__struct_fields__}, "cuts")
    ranks, values = row.cuts.ranks, row.spectrum.singular_values
    if not ranks or ranks != sorted(set(ranks)) or ranks[0] > rank:
        yield f"the ranks of cuts are {quoted(ranks)}; expected ascending ones from at most {rank}"
    elif ranks[-1] > len(values):
        yield f"there are {len(values)} singular values, and cuts at rank {ranks[-1]}: give the whole file"
    if document.ranks and row.module not in document.ranks.rank_pattern:
        yield f"ranks.rank_pattern does not name {quoted(row.module)}"
    if row.metrics.noise_edge is None:  # type: ignore[attr-defined]
        yield "metrics.noise_edge is null"
    yield from _quantile_faults(row)
    if len(row.changes) != len(document.against):
        yield f"it has {len(row.changes)} changes, and against has {len(document.against)} entries"
    for place in [change.placement for change in row.changes if change.placement]:
        counts = [count for count in (place.intruders, place.intruders_of) if count is not None]
        if len(counts) == 1 or counts != sorted(counts):
            yield f"intruders is {quoted(place.intruders)} and intruders_of is {quoted(place.intruders_of)}"


def _quantile_faults(row: Matrix) -> Iterator[str]:
    levels = row.elements.quantile_levels or []
    if not set(LEVELS) <= set(levels):
        yield f"the quantile_levels are {quoted(levels)}; expected {quoted(list(LEVELS))} among them"
    of = {f"changes[{at}].elements_after": change.elements_after.quantiles for at, change in enumerate(row.changes)}
    yield from _unequal({"elements.quantile_levels": levels, "elements": row.elements.quantiles, **of}, "quantiles")


def _unequal(lists: dict[str, Sequence[Any]], what: str) -> Iterator[str]:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        yield f"the lists of {what} have different lengths, {lengths}"
