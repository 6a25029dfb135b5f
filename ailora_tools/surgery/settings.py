"""What `init` was asked for, and whether that fits the plan: all faults at once, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..adapters.peft import LARGEST_SCALING, scaling_of
from ..checkpoint.header import BASE_DTYPES, FACTOR_DTYPES, quoted
from ..errors import OptionError, listed
from ..matrices.quantisation import BARE
from ..methods import Method
from ..targets.extras import Wanted
from ..targets.plan import unreached_by_peft
from ..targets.projections import Plan
from ..targets.selection import Selection

GRIDS = ("nf4", "fp4")  # of bitsandbytes, as `linalg.grid` knows them
GRID_BLOCK = 64
ROUNDS, MOST_ROUNDS = 5, 100  # after five a round gains less than 1 %
ROUNDINGS = ("auto", "nearest", "stochastic")
BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class Settings:
    """Everything besides the source that the written numbers depend on."""

    rank: int
    method: str
    roles: tuple[str, ...]
    layers: str | None
    alpha: int
    rslora: bool
    dora: bool
    bias: str
    adapter_dtype: str
    base_dtype: str
    rounding: str
    seed: int
    device: str
    q_tensor: str | None
    v_tensor: str | None
    transformers_major: int = 5
    no_base: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, int] = field(default_factory=dict)
    unbuilt: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    trainable_tokens: str | None = None
    model_class: str | None = None
    num_labels: int | None = None
    grid: str | None = None
    rounds: int | None = None
    group_size: int | None = None

    @property
    def beside(self) -> Wanted:
        """The options for what trains beside the factors. Only of a class that was named a head is made anew."""
        return Wanted(tuple(self.modules_to_save), self.trainable_tokens, new=self.model_class is not None)

    @property
    def selection(self) -> Selection:
        """The options that choose the targets, and the modules that the class turned out to lack."""
        return Selection(self.roles, self.layers, self.q_tensor, self.v_tensor, tuple(self.unbuilt))

    def rank_of(self, module: str) -> int:
        """`rank` where the pattern does not name the module."""
        return self.rank_pattern.get(module, self.rank)

    def alpha_of(self, module: str) -> int:
        """A listed module without an alpha of its own has its rank: scaling 1."""
        return self.alpha_pattern.get(module, self.rank_pattern.get(module, self.alpha))


def require_fit(settings: Settings, method: Method, plan: Plan, more: Iterable[str] = ()) -> None:
    """OptionError that names everything in the settings that does not fit together, or does not fit the plan; `more`:
    what was found elsewhere."""
    wrong = [
        *_choices(settings), *_together(settings, method), *_grid(settings, method, plan), *_bare(plan),
        *_misread(settings, plan), *_half_frozen(method, plan), *_ranks(settings, plan), *_zero(settings, method, plan),
        *more,
    ]  # fmt: skip
    if wrong:
        raise OptionError(f"{'; '.join(wrong)}.", "See `ailora-tools init --help` for what each option takes.")


def _choices(settings: Settings) -> Iterator[str]:
    for label, value, choices in (
        ("adapter dtype", settings.adapter_dtype, tuple(FACTOR_DTYPES)),
        ("base dtype", settings.base_dtype, BASE_DTYPES),
        ("rounding", settings.rounding, ROUNDINGS),
        ("bias", settings.bias, BIASES),
    ):
        if value not in choices:
            yield f"{label} is {value!r}; it must be one of {', '.join(choices)}"
    if settings.rank < 1 or not settings.alpha >= 1:
        yield f"rank is {settings.rank} and alpha {settings.alpha}; both must be at least 1"
    else:
        yield from _scalings(settings)


def _scalings(settings: Settings) -> Iterator[str]:
    """That of modules which the patterns do not name, and of those which they do."""
    named = settings.rank_pattern.keys() | settings.alpha_pattern.keys()
    pairs = {(settings.rank, settings.alpha), *((settings.rank_of(name), settings.alpha_of(name)) for name in named)}
    for rank, alpha in sorted(pairs):
        if scaling_of(alpha, rank, settings.rslora) is None:
            yield (
                f"alpha {quoted(alpha)} at rank {quoted(rank)} makes a scaling beyond {LARGEST_SCALING:,.0f}, "
                "the largest that is taken"
            )


def _together(settings: Settings, method: Method) -> Iterator[str]:
    """Options that exclude each other."""
    offset = settings.no_base and method.residual
    if settings.dora and offset:
        yield "DoRA takes norms of base plus adapter, which a second, frozen adapter is no part of: no --no-base"
    if settings.bias != "none" and offset:
        yield "PEFT loads no second adapter beside one with biases: no --bias with --no-base"
    if settings.trainable_tokens is not None and offset:
        yield "PEFT loads no second adapter beside one with tokens: no --trainable-tokens with --no-base"
    if settings.no_base and (settings.base_dtype, settings.rounding) != ("keep", "auto"):
        yield "without a base (--no-base) there is no --base-dtype and no --rounding"


def _grid(settings: Settings, method: Method, plan: Plan) -> Iterator[str]:
    """A residual on a grid of few bits."""
    if settings.grid is None:
        return
    if settings.grid not in GRIDS or not 1 <= (settings.rounds or 0) <= MOST_ROUNDS:
        yield f"grid is {settings.grid!r} with {settings.rounds} rounds; it must be {' or '.join(GRIDS)} with 1 to 100"
    if settings.no_base or not method.residual:
        yield "--grid is for the residual base, and none is written"
    if settings.rounding != "auto":
        yield "on a grid (--grid) everything is rounded to the nearest number of it: no --rounding"
    if settings.dora:
        yield "DoRA's magnitudes would scale what the grid has lost: no --dora with --grid"
    wide = [one.stored.name for one in plan.carriers if one.fused and one.sides[1] % GRID_BLOCK]
    if wide:
        yield (
            f"{listed(wide)} hold other matrices too, in rows that are no multiple of {GRID_BLOCK}: a block of the "
            "grid would reach from one into the other"
        )
    narrow = [one.stored.name for one in plan.carriers if one.stored.dtype == "F64"]
    if narrow:
        yield f"{listed(narrow)} are in float64, which no loader quantises: no --grid"


def _bare(plan: Plan) -> Iterator[str]:
    bare = [carrier.stored.name for carrier in plan.carriers if carrier.stored.name.endswith(BARE)]
    if bare:
        yield (
            f"{listed(bare)} are parameters of torch.nn.MultiheadAttention, whose adapter in PEFT cannot leave "
            "out_proj alone (`analyze` takes them)"
        )


def _misread(settings: Settings, plan: Plan) -> Iterator[str]:
    modules = [carrier.module for carrier in plan.carriers]
    if named := unreached_by_peft(plan.model_type, modules, settings.transformers_major):
        yield (
            f"PEFT takes the names of {listed(named)} for those of experts in models of type {plan.model_type} and "
            "would drop their adapters (`analyze` takes them)"
        )


def _half_frozen(method: Method, plan: Plan) -> Iterator[str]:
    """Fused modules of whose B (or A) one part should be frozen and another trained."""
    mixed = [carrier for carrier in plan.carriers if len({method.rule(one.role).frozen for one in carrier.targets}) > 1]
    if mixed:
        parts = ", ".join(f"{target.role}={method.rule(target.role).name}" for target in mixed[0].targets)
        shared = listed([carrier.module for carrier in mixed])
        yield f"{shared} has one A and one B for {parts}, of which only a part is to be frozen"


def _ranks(settings: Settings, plan: Plan) -> Iterator[str]:
    """Modules of the pattern that are not in the plan, and the worst rank above a matrix's smaller side."""
    strangers = sorted(settings.rank_pattern.keys() - {target.module for target in plan.targets})
    if strangers:
        yield f"the ranks file names {listed(strangers)}, which this run does not touch (same roles and layers there?)"
    worst = max(plan.targets, key=lambda target: settings.rank_of(target.module) - min(target.shape))
    if settings.rank_of(worst.module) > min(worst.shape):
        yield (
            f"rank {settings.rank_of(worst.module)} is above {min(worst.shape)}, the smaller side of "
            f"{worst.tensor} {list(worst.shape)}"
        )


def _zero(settings: Settings, method: Method, plan: Plan) -> Iterator[str]:
    """Adapters that would start at zero in A and in B, and so never get a gradient."""
    for target in plan.targets:
        rule, rank = method.rule(target.role), settings.rank_of(target.module)
        if 1 <= rank < rule.least:
            yield f"rule {rule.name} makes both factors of {target.tensor} zero at rank {rank}; it takes {rule.least}"
            return
