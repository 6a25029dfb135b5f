"""`convert`: a trained adapter and the folder it started from become a plain LoRA for the original base.

The original is W = W_res + s B0 A0 and the trained model W_res + s B A, so the change is s (B A - B0 A0): A' = [A; A0]
and B' = [s B, -s B0] have it at rank 2r. They are factored anew, so that the two large parts do not cancel in 16 bits.
Where nothing has to be subtracted A, B and s stay as they are: of QA-LoRA A with each column g times.

All modules get one rank, filled up with zeros, since servers know one rank and one alpha: llama.cpp and Ollama take
alpha / rows of A, SGLang, TGI and LoRAX stack the factors of all layers; none reads the patterns of PEFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.binding import Directory, bind
from ..adapters.folder import Adapter, Factors, open_adapter
from ..adapters.keys import saved_name
from ..adapters.lost import require_whole
from ..adapters.peft import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    ADAPTER_WEIGHTS,
    PREFIX,
    tensor_names,
)
from ..adapters.promises import Base, require_promised
from ..checkpoint.arithmetic import ieee
from ..checkpoint.files import LocalFiles, Origin
from ..checkpoint.header import FACTOR_DTYPES
from ..display.shown import shows_progress
from ..errors import OptionError, TargetError, listed
from ..output.about_grid import about_original
from ..output.atomic import Output, making
from ..output.cards.made import converted_card
from ..output.cards.source import source_of_model
from ..output.manifest import read_manifest
from ..output.names import ADAPTER_FOLDER, CARD
from ..output.place import output_folder
from ..output.result import write_result
from ..output.sources import Sources
from ..output.spans import write_json, write_span, write_text
from ..progress import Progress, heard
from ..surgery.all_layers import find_all_layers
from .convert_files import ConvertJob, config, lay_out
from .descent import Likeness
from .result import Result
from .right_base import require_right_start
from .start_folder import start_folder

if TYPE_CHECKING:
    from torch import Tensor

    from ..surgery.intruders import Reduced

_NOTHING = 1e-12  # of the size of both products: below it their difference is the rounding of float64
_WIDER = "Store the result in a wider type: --dtype float32 (or bfloat16, which reaches as far)."


@dataclass(frozen=True)
class Converted:
    """One module: its rank, of which `filled` are zeros that make all ranks one, whether training changed it, and
    norm(change - stored B A) / norm(change) with what truncation alone took.

    Where intruders were to be reduced, how many it had, and `taken`, the share of what training did that is gone:
    `error` and `truncated` are then of the change without them.
    """

    module: str
    rank: int
    filled: int
    changed: bool
    error: float
    truncated: float
    intruders: int | None = None
    taken: float | None = None


@dataclass(frozen=True, repr=False)
class Conversion(Result):
    """Where the plain LoRA lies, the base it fits, and every module in the order of the manifest."""

    folder: Path
    base: str
    modules: tuple[Converted, ...]
    kept: tuple[str, ...]
    added: tuple[str, ...] = ()
    scaling: float = 1.0

    _columns = ("module", "rank", "filled", "changed", "error", "truncated")

    def told(self) -> str:
        """Of which modules, how exact, and where it lies."""
        worst = max((module.error for module in self.modules), default=0.0)
        return f"of {len(self.modules)} modules for {self.base}, error at most {worst:.1e}, {self.folder}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints; `kept` names tensors that were copied as they are (`modules_to_save`, biases), `added`
        the modules of other layers, whose factors are zero."""
        return {
            "folder": str(self.folder),
            "base": self.base,
            "modules": [asdict(module) for module in self.modules],
            "kept": list(self.kept),
            "added": list(self.added),
            "scaling": self.scaling,
        }


@shows_progress
def convert(
    trained: str | Path,
    init: str | Path,
    output: str | Path,
    *,
    rank: int | None = None,
    keep_ranks: bool = False,
    all_layers: bool = False,
    dtype: str = "float32",
    reduce_intruders: float | None = None,
    intruders_of: int = 10,
    intruder_cosine: float = 0.5,
    overwrite: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
) -> Conversion:
    """Write a LoRA that does to the original base what `trained` does to the base in `init`.

    `trained` is an adapter folder or a checkpoint folder of a trainer; `init` the folder that `initialize` wrote. Both
    may be repositories on the Hub, `org/name[@revision]`.
    Without `rank` the change is kept whole, at twice the rank of the largest module; with it, the best approximation of
    that rank is, and its error told. Smaller modules are filled up with zeros, which change nothing: one rank holds for
    all of them. With `keep_ranks` each has its own, `rank` at most, which PEFT reads and most servers do not. The
    scaling of the result is 1 (alpha = rank), or that of `trained` where nothing was taken out of the base: its
    factors are kept as they are then. With `all_layers` the layers that `init --layers` left out get factors of zero;
    the headers of the base are read for their names. No input is changed.

    With `reduce_intruders`, such as 0.75, directions that training made and the model had nothing like (no cosine of
    `intruder_cosine` or more, among the first `intruders_of` of each matrix) keep that share of their size, as PEFT's
    `reduce_intruder_dimension` does it. Only for that are weights of a base read: of the residual, or the original.

    Raises CheckpointError, TargetError (DoRA, or an adapter of another start), OptionError, NumericalError or
    OutputError.

    >>> made = convert("start/ailora_init", "start", "plain")
    >>> made.modules[0].rank, made.modules[0].changed  # nothing was trained here
    (4, False)
    """
    if dtype not in FACTOR_DTYPES or (rank is not None and rank < 1):
        raise OptionError(f"dtype {dtype!r}, rank {rank!r}: one of {', '.join(FACTOR_DTYPES)}; a rank of at least 1.")
    progress = heard(progress)
    held, root = open_adapter(trained), start_folder(init)
    job = _match(held, root, output_folder(output, "", [held.files.origin, Origin(str(root))], progress))
    job = replace(job, others=find_all_layers(job.manifest, root, job.names)) if all_layers else job
    ranks = _ranks(job, rank, keep_ranks)
    scaling = _scaling(job, ranks)
    complete = require_whole(held, job.factors, job.initial, job.names)
    original = source_of_model(LocalFiles(root))
    for text in (*complete, *held.notices, *about_original(job.manifest), *original.notices):
        progress.notice(text)
    sources = Sources((held.files, ADAPTER_FILES), (job.initial.files, ADAPTER_FILES))
    fewer = _fewer(job, root, reduce_intruders, intruders_of, intruder_cosine)
    scaling = 1.0 if fewer else scaling
    out = Output(job.folder, "convert", overwrite=overwrite, force=force)
    with making(out, sources.require_unchanged) as tree, ieee():
        modules = _write(job, tree, ranks, scaling, FACTOR_DTYPES[dtype], fewer, progress)
        result = Conversion(job.folder, job.base[0], modules, tuple(job.kept), tuple(job.added), scaling)
        write_text(tree / CARD, converted_card(job.folder.name, original, [(one.rank, one.error) for one in modules]))
        made_from = {"trained": held.files.origin.to_json()["location"], "init": str(root.resolve())}
        write_result(tree, {"verb": "convert", **made_from, **result.to_json()})
    return result


def _match(trained: Adapter, root: Path, folder: Path) -> ConvertJob:
    """Everything that does not fit, before anything is written."""
    manifest = read_manifest(root)
    initial = open_adapter(root / ADAPTER_FOLDER)
    if trained.dora:
        raise TargetError(
            f"{trained.location}: a DoRA adapter cannot become a plain LoRA: its norms change with the base.",
            "Load it on the residual base as it is, or merge the two: ailora-tools merge DIR TRAINED -o merged.",
        )
    known = {module: (f"{module}.weight",) for module in initial.modules}
    hint = "Give the folder that `init` wrote and this training loaded its adapter from."
    binding = bind(trained, Directory(known), f"the start in {root}", hint, only_modules=True)
    missing = sorted(initial.modules.keys() - set(binding.modules.values()))
    biased = [module for module, factors in binding.factors.items() if factors.bias is not None]
    faults = [
        *([f"it lacks {listed(missing)}"] if missing else []),
        *([f"{listed(biased)} have a bias of lora_B, which has no start"] if biased else []),
        *(
            _shapes_apart(trained, binding.factors[module], initial, module, name)
            for module, name in binding.modules.items()
        ),
    ]
    faults = [fault for fault in faults if fault]
    if faults:
        raise TargetError(f"{trained.location} was not trained from {root}: {listed(faults)}.", hint)
    require_right_start(trained, initial)
    require_promised(trained, binding.modules, Base(tuple(initial.modules), of_start=True))
    kept = {saved_name(path, stored): stored for path, stored in (*trained.others.items(), *trained.tokens.items())}
    return ConvertJob(trained, initial, manifest, binding.modules, binding.factors, kept, folder)


def _shapes_apart(trained: Adapter, now: Factors, initial: Adapter, module: str, name: str) -> str:
    """What is wrong with the shapes of one module, if anything is. An export has one rank for all, filled up with zeros
    on both sides, which get no gradient: they are still zero now."""
    then = initial.modules[name]
    if now.sides == then.sides and now.rank >= then.rank:
        if now.rank == then.rank:
            return ""
        A, B = trained.load(now.A), trained.load(now.B)
        if not A[then.rank :].any() and not B[:, then.rank :].any():
            return ""
    return f"{module} has shape {now.sides} and rank {now.rank}, at the start {then.sides} and rank {then.rank}"


def _ranks(job: ConvertJob, rank: int | None, keep: bool) -> dict[str, int]:
    """Module -> the rank of its factors in the file; OptionError for one that no module has room for."""
    widest = max(min(factors.sides) for factors in job.factors.values())
    if rank is not None and rank > widest:
        raise OptionError(f"rank {rank} is above {widest}, the smaller side of the largest module.")
    own = {module: _own_rank(job, module, rank) for module in job.names}
    one = rank or max(own.values())
    return {module: own.get(module, one) if keep else one for module in (*own, *job.added)}


def _own_rank(job: ConvertJob, module: str, rank: int | None) -> int:
    """What the change of one module needs, `rank` at most."""
    then = job.initial.modules[job.names[module]]
    whole = min((1 + job.moved) * then.rank, *then.sides)
    return whole if rank is None else min(rank, whole)


def _fewer(
    job: ConvertJob, root: Path, keep: float | None, first: int, cosine: float
) -> Callable[[str, Tensor, Tensor], Reduced] | None:
    """What takes the intruders out of the change of a module; None where that is not wanted."""
    if keep is None:
        return None
    if not (0 <= keep <= 1 and first >= 1 and 0 < cosine <= 1):
        raise OptionError(
            f"reduce-intruders {keep!r}, intruders-of {first!r}, intruder-cosine {cosine!r}: a share of 0 to 1 that "
            "stays, at least 1 direction, and a cosine above 0 and at most 1."
        )
    from ..surgery.intruders import Originals, Reduction, reduce_intruders

    originals, wanted = Originals.of(job.manifest, root, job.initial), Reduction(keep, first, cosine)
    return lambda module, B, A: reduce_intruders(originals.weight(job.names[module]), B, A, wanted)


def _write(
    job: ConvertJob, tree: Path, ranks: Mapping[str, int], scaling: float, dtype: str,
    fewer: Callable[[str, Tensor, Tensor], Reduced] | None, progress: Progress,
) -> tuple[Converted, ...]:  # fmt: skip
    """One module after the other into a file that was laid out before."""
    from ..checkpoint.stream import DTYPES, matrix_bytes
    from ..linalg.finite import stored
    from ..linalg.lowrank import distance, factorise, filled

    header = lay_out(job, tree, ranks, dtype)
    progress.start("Converting", len(job.names), 0)
    done, alike = [], Likeness()
    for module in job.names:
        B, A = _change(job, module, alike)
        found = factorise(B, A).cleared(_NOTHING * float(B.norm() * A.norm()))
        less = fewer(module, B, A) if fewer and found.S.any() else None
        new = less is not None and less.intruders > 0
        change, (B, A) = (B, A), (less.B, less.A) if less else (B, A)
        found = factorise(B, A) if new else found
        stays = not new and _stays(job, module, ranks)
        sides = filled(A, B / scaling, ranks[module]) if stays else found.balanced(ranks[module])
        factors = [stored(side, DTYPES[dtype], module, _WIDER) for side in sides]
        for name, side in zip(tensor_names(module), factors, strict=True):
            write_span(tree / ADAPTER_WEIGHTS, header[name], matrix_bytes(side))
        kept = scaling * factors[1].double(), factors[0]
        error = distance(B, A, *kept) if found.S.any() else 0.0
        rank, more = ranks[module], ranks[module] - _own_rank(job, module, ranks[module])
        told = (less.intruders, distance(*change, *kept)) if less else (0, 0.0) if fewer else ()
        done.append(Converted(module, rank, more, bool(found.S.any()), error, found.lost(rank), *told))
        progress.advance(module)
    alike.require_descent(job.trained, job.initial)
    for name, info in job.kept.items():
        write_span(tree / ADAPTER_WEIGHTS, header[PREFIX + name], matrix_bytes(job.trained.load(info)))
    write_json(tree / ADAPTER_CONFIG, config(job, ranks, scaling))
    return tuple(done)


def _stays(job: ConvertJob, module: str, ranks: Mapping[str, int]) -> bool:
    """Whether the factors of a module can be kept: nothing is subtracted, and there is room for all of them."""
    return not job.moved and job.initial.modules[job.names[module]].rank <= ranks[module]


def _scaling(job: ConvertJob, ranks: Mapping[str, int]) -> float:
    """That of the trained adapter, where all factors are kept and one alpha, a whole number, says it; else 1."""
    found = {job.factors[module].scaling for module in job.names if _stays(job, module, ranks)}
    if len(found) != 1 or not all(_stays(job, module, ranks) for module in job.names):
        return 1.0
    (one,) = found
    return one if all((one * rank).is_integer() and one * rank / rank == one for rank in ranks.values()) else 1.0


def _change(job: ConvertJob, module: str, alike: Likeness) -> tuple[Tensor, Tensor]:
    """B' and A' in float64 with B' A' the change of W, of what is not there to fill up."""
    import torch

    now, then = job.factors[module], job.initial.modules[job.names[module]]
    A, B = (job.trained.load(now.A)[: then.rank].double(), job.trained.load(now.B)[:, : then.rank].double())
    A0, B0 = (job.initial.load(info).double() for info in (then.A, then.B))
    alike.add("A", A, A0)
    alike.add("B", B, B0)
    if not job.moved:
        return now.scaling * B, A
    return torch.cat([now.scaling * B, -then.scaling * B0], 1), torch.cat([A, A0])
