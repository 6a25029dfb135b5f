"""`extract`: two models of one architecture become the LoRA that turns the one into the other.

Of each linear layer the difference W1 - W0 is cut to a rank (Eckart and Young, Psychometrika 1, 1936) and split into B
and A, the square root of each singular value on either side. What no such LoRA holds is compared, and told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterModule, adapter_config, tensor_names
from ..checkpoint.header import FACTOR_DTYPES, tensor_bytes
from ..checkpoint.index import read_checkpoint
from ..checkpoint.machine import parse_size
from ..checkpoint.source import SourceOptions, open_files, user_path
from ..display.shown import shows_progress
from ..errors import OptionError, TargetError, listed
from ..extraction.pairs import Pairs, pair_up
from ..extraction.rest import Beyond, Rest, compare, find_rest
from ..output.appended import AppendedTensors, Entry
from ..output.atomic import Output, making, require_possible
from ..output.cards.made import extracted_card
from ..output.cards.source import source_of_model
from ..output.names import CARD
from ..output.place import output_folder
from ..output.ranks import Ranks, read_ranks
from ..output.result import write_result
from ..output.sources import Sources
from ..output.spans import write_json, write_text
from ..progress import Progress, heard
from ..targets.plan import target_modules
from ..targets.projections import Carrier
from ..targets.selection import Selection
from .announce import announce_both
from .memory import at_once, need
from .result import Result

if TYPE_CHECKING:
    from ..extraction.factors import Extracted, Unchanged, Wanted


@dataclass(frozen=True, repr=False)
class Extraction(Result):
    """Where the LoRA lies, and of every module how well it is held; after a dry run nothing but what was `planned`.

    unchanged: modules that are the same in both models, `rounded` those that are but for the dtype of one of them.
    beyond: what changed besides, and is in no LoRA; `compared` is False where that was not looked at.
    """

    folder: Path
    base: str
    tuned: str
    planned: tuple[str, ...]
    modules: tuple[Extracted, ...] = ()
    unchanged: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()
    beyond: tuple[Beyond, ...] = ()
    compared: bool = False
    dry_run: bool = False

    _columns = ("module", "rank", "change", "error", "energy", "rounding")

    @property
    def error(self) -> float:
        """norm of all that the LoRA leaves of the change of its modules, over the norm of that change."""
        whole = sum(_square(module) for module in self.modules)
        left = sum(_square(module) * module.error**2 for module in self.modules)
        return (left / whole) ** 0.5 if whole else 0.0

    def told(self) -> str:
        """Of which models, how exact, and where it lies."""
        if self.dry_run:
            return f"of {self.tuned}: a dry run, nothing written to {self.folder}"
        return f"of {len(self.modules)} modules for {self.base}, error {self.error:.2g} of the change, {self.folder}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder),
            "dry_run": self.dry_run,
            "planned": list(self.planned),
            "error": self.error,
            "modules": [asdict(module) for module in self.modules],
            "unchanged": list(self.unchanged),
            "rounded": list(self.rounded),
            "compared": self.compared,
            "beyond": [asdict(one) for one in self.beyond],
        }


def _square(module: Extracted) -> float:
    """norm(W1 - W0)^2, from what is kept of it."""
    return sum(value**2 for value in module.singular_values) / max(1 - module.truncated**2, 1e-300)


@shows_progress
def extract(
    base: str | Path,
    tuned: str | Path,
    output: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    ranks: str | Path | None = None,
    roles: Sequence[str] | None = None,
    layers: str | None = None,
    q_tensor: str | None = None,
    v_tensor: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    memory: str | int | None = None,
    overwrite: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | bool | None = None,
    **source: Unpack[SourceOptions],
) -> Extraction:
    """Write the LoRA that turns `base` into `tuned` as well as its rank can.

    Both are folders, .safetensors files or Hub ids of one architecture; sharding, dtype, quantisation and the prefix of
    the names may differ. `source` are options for `base`, as for `initialize`. Each module has rank `rank` at most, 16
    by default, or as `ranks`, a ranks.json, says; with `energy`, such as 0.9, the smallest rank that holds that share
    of the squared norm of its change. Where a change ends below that, the rank does. `roles` (default: every linear
    layer) and `layers` choose among the modules; what else changed is then not looked at. The scaling is 1. Inputs are
    never changed, and no more than a few matrices are in memory.

    Raises CheckpointError, TargetError where the two do not belong together or no chosen matrix changed, OptionError,
    NumericalError, OutputError.

    >>> made = extract("model", "start", "lora", rank=4)  # of a residual base: what was taken out of it, of rank 2
    >>> made.modules[0].rank, made.error < 1e-4, len(made.beyond)
    (2, True, 0)
    """
    _require_sound(rank, energy, dtype)
    progress = heard(progress)
    limit = None if memory is None else parse_size(memory)
    sizes = Ranks(None, {}, {}) if ranks is None else read_ranks(user_path(ranks, "--ranks"))
    general = rank if rank is not None else sizes.rank
    if general is None and energy is None:
        general = 16
    checkpoint = read_checkpoint(open_files(base, **source))
    selection = Selection(tuple(roles or ()), layers, q_tensor, v_tensor)
    pairs = pair_up(checkpoint, open_files(tuned), selection, everything=roles is None)
    rest = find_rest(pairs) if pairs.whole else None
    folder = output_folder(output, "", [checkpoint.origin, pairs.tuned.origin], progress)
    widest = _widest(pairs, general, sizes.rank_pattern, FACTOR_DTYPES[dtype])
    _tell(pairs, rest, progress)
    nbytes = sum(tensor_bytes(kind, shape) for _, kind, shape in widest)
    out = Output(folder, "extract", overwrite=overwrite, force=force, nbytes=nbytes)
    result = Extraction(folder, checkpoint.location, pairs.tuned.location, _planned(pairs), dry_run=dry_run)
    if dry_run:
        require_possible(out)
        return result
    sources = Sources((checkpoint.files, checkpoint.headers), (pairs.tuned.files, pairs.tuned.headers))
    with making(out, sources.require_unchanged) as tree:
        from ..checkpoint.stream import DTYPES, find_device
        from ..extraction.factors import Wanted

        wanted = Wanted(general, sizes.rank_pattern, energy, DTYPES[FACTOR_DTYPES[dtype]])
        place = find_device(device, progress.notice)
        with AppendedTensors(tree / ADAPTER_WEIGHTS, widest, {"tool": "ailora-tools extract"}) as file:
            records = [
                _store(file, carrier, FACTOR_DTYPES[dtype], *found)
                for carrier, found in _extracted(pairs, wanted, place, limit, progress)
            ]
        result = _summed_up(result, records, _compared(rest, pairs, progress), rest is not None)
        write_json(tree / ADAPTER_CONFIG, _config(pairs, result.modules))
        write_text(tree / CARD, _card(pairs, result))
        made_from = {"base": checkpoint.origin.to_json(), "tuned": pairs.tuned.origin.to_json()}
        asked = {"rank": general, "energy": energy, "dtype": dtype}
        write_result(tree, {"verb": "extract", **made_from, **asked, **result.to_json()})
    return result


def _require_sound(rank: int | None, energy: float | None, dtype: str) -> None:
    if dtype not in FACTOR_DTYPES or (rank is not None and rank < 1) or not (energy is None or 0 < energy <= 1):
        raise OptionError(
            f"dtype {dtype!r}, rank {rank!r}, energy {energy!r}: a dtype of {', '.join(FACTOR_DTYPES)}, a rank of at "
            "least 1, and an energy above 0 and at most 1."
        )


def _planned(pairs: Pairs) -> tuple[str, ...]:
    return tuple(carrier.module for carrier in pairs.plan.carriers)


def _widest(pairs: Pairs, rank: int | None, ranks: Mapping[str, int], dtype: str) -> list[Entry]:
    """A and B of every module at the largest rank that they can have; OptionError for a rank that no module has."""
    sides = {carrier.module: (_outputs(carrier), carrier.sides) for carrier in pairs.plan.carriers}
    largest = max(min(outputs, inputs) for outputs, (_, inputs) in sides.values())
    if rank is not None and rank > largest:
        raise OptionError(f"rank {rank} is above {largest}, the smaller side of the largest module.")
    strange = sorted(ranks.keys() - sides.keys())
    if strange:
        raise OptionError(f"--ranks names {listed(strange)}, which are not among the modules.", "Is it for this model?")
    entries: list[Entry] = []
    for module, (outputs, (rows, inputs)) in sides.items():
        full = min(outputs, inputs)
        most = min(ranks.get(module, rank or full), full)
        name_a, name_b = tensor_names(module)
        entries += [(name_a, dtype, (most, inputs)), (name_b, dtype, (rows, most))]
    return entries


def _outputs(carrier: Carrier) -> int:
    """Rows of the matrices that are asked for in one module."""
    return sum(target.shape[0] for target in carrier.targets)


def _tell(pairs: Pairs, rest: Rest | None, progress: Progress) -> None:
    """What the user should know before anything is read."""
    for text in pairs.notices:
        progress.notice(text)
    if rest is None:
        progress.notice("only the matrices asked for are compared: what else changed is not looked at")
    parts = ([*own, *others] for own, others in zip(pairs.reads, rest.reads if rest else ([], []), strict=True))
    announce_both(zip((pairs.base, pairs.tuned), parts, strict=True), progress)


def _extracted(
    pairs: Pairs, wanted: Wanted, device: Any, memory: int | None, progress: Progress
) -> Iterator[tuple[Carrier, tuple[Extracted | Unchanged, Any]]]:
    """In the order of the file, so that the same bytes come out however many are worked on at a time."""
    from ..checkpoint.arithmetic import ieee
    from ..checkpoint.stream import stream
    from ..extraction.factors import Extracting

    carriers = pairs.plan.carriers
    count = at_once(need("extract", pairs.plan.targets), memory, progress.notice)
    progress.start("Extracting", len(carriers), 0)
    with ieee():
        steps = Extracting(pairs, wanted)
        for carrier, found in stream(pairs.base.files, carriers, steps, device, progress.notice, count):
            yield carrier, found
            progress.advance(carrier.label, carrier.stored.nbytes)


def _store(
    file: AppendedTensors, carrier: Carrier, dtype: str, record: Extracted | Unchanged, factors: Any
) -> Extracted | Unchanged:
    if factors is not None:
        (rows, inputs), rank = carrier.sides, record.rank  # type: ignore[union-attr]
        shapes = ((rank, inputs), (rows, rank))
        for name, shape, data in zip(tensor_names(carrier.module), shapes, factors, strict=True):
            file.add(name, dtype, shape, data)
    return record


def _compared(rest: Rest | None, pairs: Pairs, progress: Progress) -> tuple[Beyond, ...]:
    """What is different of all that is no linear layer."""
    if rest is None:
        return ()
    progress.start("Comparing the rest", len(rest.same), 0)
    found = list(rest.told)
    for name, nbytes, beyond in compare(rest, pairs):
        found += [beyond] if beyond else []
        progress.advance(name, nbytes)
    return tuple(found)


def _summed_up(
    planned: Extraction, records: Sequence[Extracted | Unchanged], beyond: tuple[Beyond, ...], compared: bool
) -> Extraction:
    """TargetError where nothing is left to write."""
    from ..extraction.factors import Extracted, Unchanged

    modules = tuple(record for record in records if isinstance(record, Extracted))
    still = [record for record in records if isinstance(record, Unchanged)]
    if not modules:
        changed = [one.tensor for one in beyond if one.why == "changed"]
        same = "but for the rounding of its dtype " if any(one.by_rounding for one in still) else ""
        if compared:
            others = f"what changed is {listed(changed)}" if changed else "so is all else that both have"
        else:
            others = "nothing else was looked at"
        raise TargetError(
            f"{planned.tuned}: its {len(still)} matrices are {same}those of {planned.base}; {others}: there is no LoRA "
            "to extract.",
            "Is it the fine-tuned model? Tensors that are no linear layer need a copy, not a LoRA.",
        )
    return replace(
        planned,
        modules=modules,
        unchanged=tuple(one.module for one in still if not one.by_rounding),
        rounded=tuple(one.module for one in still if one.by_rounding),
        beyond=beyond,
        compared=compared,
    )


def _card(pairs: Pairs, result: Extraction) -> str:
    """README.md; the licence is that of the base, whose card it keeps."""
    original, tuned = (source_of_model(one.files) for one in (pairs.base, pairs.tuned))
    ranks, beyond = [module.rank for module in result.modules], len(result.beyond) if result.compared else None
    return extracted_card(result.folder.name, original, tuned, ranks, result.error, beyond)


def _config(pairs: Pairs, modules: Sequence[Extracted]) -> dict[str, Any]:
    """adapter_config.json for the base where it is now. Short names are for all modules of a name alone."""
    base, carriers = pairs.base, {carrier.module: carrier for carrier in pairs.plan.carriers}
    adapted = [AdapterModule(one.module, carriers[one.module].sides, one.rank, one.rank) for one in modules]
    short = pairs.exact and len(modules) == len(carriers)
    origin = base.origin
    return adapter_config(
        adapted,
        target_modules(pairs.plan, base) if short else sorted(one.module for one in modules),
        base=origin.location if origin.path is None else str(origin.path.resolve()),
        revision=origin.revision,
        architectures=base.architectures,
        rslora=False,
        transposed=any(carrier.transposed for carrier in carriers.values()),
    )
