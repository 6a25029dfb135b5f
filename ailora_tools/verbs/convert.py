"""`convert`: a trained adapter and the folder it started from become a plain LoRA for the original base.

The original is W = W_res + s B0 A0 and the trained model W_res + s B A, so the change is s (B A - B0 A0): A' = [A; A0]
and B' = [s B, -s B0] have it at rank 2r. They are factored anew, so that the two large parts do not cancel in 16 bits.
Where nothing has to be subtracted A, B and s stay as they are: of QA-LoRA A with each column g times.

All modules get one rank, filled up with zeros, since servers know one rank and one alpha: llama.cpp and Ollama take
alpha / rows of A, SGLang, TGI and LoRAX stack the factors of all layers; none reads the patterns of PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    AdapterModule,
    adapter_config,
    tensor_names,
)
from ..adapters.promises import Base, require_promised
from ..checkpoint.arithmetic import ieee
from ..checkpoint.files import Origin
from ..checkpoint.header import FACTOR_DTYPES, StoredTensor, build_header
from ..checkpoint.source import user_path
from ..display.shown import shows_progress
from ..errors import OptionError, TargetError, listed
from ..output.about_grid import about_original
from ..output.atomic import Output, making
from ..output.manifest import Manifest, read_manifest
from ..output.names import ADAPTER_FOLDER, MANIFEST
from ..output.place import output_folder
from ..output.result import write_result
from ..output.sources import Sources
from ..output.spans import create, write_json, write_span
from ..progress import Progress, heard
from ..surgery.all_layers import AllLayers, find_all_layers
from .descent import Likeness
from .result import Result

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = 1e-12  # of the size of both products: below it their difference is the rounding of float64
_WIDER = "Store the result in a wider type: --dtype float32 (or bfloat16, which reaches as far)."
_CHOOSING = ("target_modules", "exclude_modules", "layers_to_transform")


@dataclass(frozen=True)
class Converted:
    """One module: its rank, of which `filled` are zeros that make all ranks one, whether training changed it, and
    norm(change - stored B A) / norm(change) with what truncation alone took."""

    module: str
    rank: int
    filled: int
    changed: bool
    error: float
    truncated: float


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


@dataclass(frozen=True)
class _ConvertJob:
    """The trained adapter and that at the start, matched: `names` maps modules of the first to those of the second,
    `factors` are those of the first, `kept` its tensors that are copied, by the names that PEFT reads them under;
    `others` the layers without an adapter, if they are to have one."""

    trained: Adapter
    initial: Adapter
    manifest: Manifest
    names: Mapping[str, str]
    factors: Mapping[str, Factors]
    kept: Mapping[str, StoredTensor]
    folder: Path
    others: AllLayers | None = None

    @property
    def moved(self) -> bool:
        """Whether something was taken out of the base, so that the start has to be subtracted."""
        return self.manifest.base or self.manifest.offset

    @property
    def added(self) -> Mapping[str, tuple[int, int]]:
        """Modules of layers that the start left out -> (out, in)."""
        return self.others.sides if self.others else {}

    def sides(self, module: str) -> tuple[int, int]:
        """(out, in) of a module of the result."""
        return self.added[module] if module in self.added else self.factors[module].sides

    @property
    def base(self) -> tuple[str, str | None]:
        """The original: where it is, and its revision."""
        source = self.manifest.source
        return str(source["location"]).removeprefix("hf://"), source["revision"]


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
    overwrite: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
) -> Conversion:
    """Write a LoRA that does to the original base what `trained` does to the base in `init`.

    `trained` is an adapter folder or a checkpoint folder of a trainer; `init` the folder that `initialize` wrote.
    Without `rank` the change is kept whole, at twice the rank of the largest module; with it, the best approximation of
    that rank is, and its error told. Smaller modules are filled up with zeros, which change nothing: one rank holds for
    all of them. With `keep_ranks` each has its own, `rank` at most, which PEFT reads and most servers do not. The
    scaling of the result is 1 (alpha = rank), or that of `trained` where nothing was taken out of the base: its
    factors are kept as they are then. With `all_layers` the layers that `init --layers` left out get factors of zero;
    the headers of the base are read for their names. No weight of a base is read, no input changed.

    Raises CheckpointError, TargetError (DoRA, or an adapter of another start), OptionError, NumericalError or
    OutputError.

    >>> made = convert("start/ailora_init", "start", "plain")
    >>> made.modules[0].rank, made.modules[0].changed  # nothing was trained here
    (4, False)
    """
    if dtype not in FACTOR_DTYPES or (rank is not None and rank < 1):
        known = ", ".join(FACTOR_DTYPES)
        raise OptionError(f"dtype {dtype!r}, rank {rank!r}: a dtype of {known} and a rank of at least 1.")
    progress = heard(progress)
    held, root = open_adapter(trained), _root(user_path(init, "--init"))
    inputs = [held.files.origin, Origin(str(root))]
    job = _match(held, root, output_folder(output, "", inputs, progress))
    job = replace(job, others=find_all_layers(job.manifest, root, job.names)) if all_layers else job
    ranks = _ranks(job, rank, keep_ranks)
    scaling = _scaling(job, ranks)
    complete = require_whole(held, job.factors, job.initial, job.names)
    for text in (*complete, *held.notices, *about_original(job.manifest)):
        progress.notice(text)
    sources = Sources((held.files, ADAPTER_FILES), (job.initial.files, ADAPTER_FILES))
    out = Output(job.folder, "convert", overwrite=overwrite, force=force)
    with making(out, sources.require_unchanged) as tree, ieee():
        modules = _write(job, tree, ranks, scaling, FACTOR_DTYPES[dtype], progress)
        result = Conversion(job.folder, job.base[0], modules, tuple(job.kept), tuple(job.added), scaling)
        made_from = {"trained": held.files.origin.to_json()["location"], "init": str(root.resolve())}
        write_result(tree, {"verb": "convert", **made_from, **result.to_json()})
    return result


def _root(init: Path) -> Path:
    """DIR, also where DIR/ailora_init was given."""
    return init.parent if not (init / MANIFEST).is_file() and (init.parent / MANIFEST).is_file() else init


def _match(trained: Adapter, root: Path, folder: Path) -> _ConvertJob:
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
    require_promised(trained, binding.modules, Base(tuple(initial.modules), of_start=True))
    kept = {saved_name(path, stored): stored for path, stored in (*trained.others.items(), *trained.tokens.items())}
    return _ConvertJob(trained, initial, manifest, binding.modules, binding.factors, kept, folder)


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


def _ranks(job: _ConvertJob, rank: int | None, keep: bool) -> dict[str, int]:
    """Module -> the rank of its factors in the file; OptionError for one that no module has room for."""
    widest = max(min(factors.sides) for factors in job.factors.values())
    if rank is not None and rank > widest:
        raise OptionError(f"rank {rank} is above {widest}, the smaller side of the largest module.")
    own = {module: _own_rank(job, module, rank) for module in job.names}
    one = rank or max(own.values())
    return {module: own.get(module, one) if keep else one for module in (*own, *job.added)}


def _own_rank(job: _ConvertJob, module: str, rank: int | None) -> int:
    """What the change of one module needs, `rank` at most."""
    then = job.initial.modules[job.names[module]]
    whole = min((1 + job.moved) * then.rank, *then.sides)
    return whole if rank is None else min(rank, whole)


def _write(
    job: _ConvertJob, tree: Path, ranks: Mapping[str, int], scaling: float, dtype: str, progress: Progress
) -> tuple[Converted, ...]:
    """One module after the other into a file that was laid out before."""
    from ..checkpoint.stream import DTYPES, matrix_bytes
    from ..linalg.finite import stored
    from ..linalg.lowrank import distance, factorise

    header = _lay_out(job, tree, ranks, dtype)
    progress.start("Converting", len(job.names), 0)
    done, alike = [], Likeness()
    for module in job.names:
        B, A = _change(job, module, alike)
        found = factorise(B, A).cleared(_NOTHING * float(B.norm() * A.norm()))
        sides = _filled(B / scaling, A, ranks[module]) if _stays(job, module, ranks) else found.balanced(ranks[module])
        factors = [stored(side, DTYPES[dtype], module, _WIDER) for side in sides]
        for name, side in zip(tensor_names(module), factors, strict=True):
            write_span(tree / ADAPTER_WEIGHTS, header[name], matrix_bytes(side))
        error = distance(B, A, scaling * factors[1].double(), factors[0]) if found.S.any() else 0.0
        rank, filled = ranks[module], ranks[module] - _own_rank(job, module, ranks[module])
        done.append(Converted(module, rank, filled, bool(found.S.any()), error, found.lost(rank)))
        progress.advance(module)
    alike.require_descent(job.trained, job.initial)
    for name, info in job.kept.items():
        write_span(tree / ADAPTER_WEIGHTS, header[PREFIX + name], matrix_bytes(job.trained.load(info)))
    write_json(tree / ADAPTER_CONFIG, _config(job, ranks, scaling))
    return tuple(done)


def _stays(job: _ConvertJob, module: str, ranks: Mapping[str, int]) -> bool:
    """Whether the factors of a module can be kept: nothing is subtracted, and there is room for all of them."""
    return not job.moved and job.initial.modules[job.names[module]].rank <= ranks[module]


def _scaling(job: _ConvertJob, ranks: Mapping[str, int]) -> float:
    """That of the trained adapter, where all factors are kept and one alpha, a whole number, says it; else 1."""
    found = {job.factors[module].scaling for module in job.names if _stays(job, module, ranks)}
    if len(found) != 1 or not all(_stays(job, module, ranks) for module in job.names):
        return 1.0
    (one,) = found
    return one if all((one * rank).is_integer() and one * rank / rank == one for rank in ranks.values()) else 1.0


def _filled(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank), with zeros after what is there."""
    from torch.nn.functional import pad

    more = rank - len(A)
    return pad(A, (0, 0, 0, more)), pad(B, (0, more))


def _change(job: _ConvertJob, module: str, alike: Likeness) -> tuple[Tensor, Tensor]:
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


def _lay_out(job: _ConvertJob, tree: Path, ranks: Mapping[str, int], dtype: str) -> dict[str, int]:
    """Make the file with its header, all zeros behind it; tensor name -> where its bytes go."""
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    for module, rank in ranks.items():
        rows, columns = job.sides(module)
        name_a, name_b = tensor_names(module)
        entries += [(name_a, dtype, (rank, columns)), (name_b, dtype, (rows, rank))]
    entries += [(PREFIX + name, info.dtype, info.shape) for name, info in job.kept.items()]
    raw, header = build_header(sorted(entries), {"format": "pt", "tool": "ailora-tools convert"}, ADAPTER_WEIGHTS)
    create(tree / ADAPTER_WEIGHTS, header.file_size, raw)
    return {name: info.start for name, info in header.tensors.items()}


def _config(job: _ConvertJob, ranks: Mapping[str, int], scaling: float) -> dict[str, Any]:
    """As the trained one, with the new ranks and one scaling, for the original base."""
    of_start = {key: job.initial.config.get(key) for key in ("task_type", "fan_in_fan_out")}  # only PEFT saves these
    old, (base, revision) = {**of_start, **job.trained.config}, job.base
    modules = [AdapterModule(name, job.sides(name), rank, int(scaling * rank)) for name, rank in ranks.items()]
    config = adapter_config(
        modules, [], base=base, revision=revision, architectures=(), rslora=False,
        transposed=bool(old.get("fan_in_fan_out")),
    )  # fmt: skip
    kept = ("target_modules", "task_type", "modules_to_save", "bias", "exclude_modules", "layers_to_transform",
            "trainable_token_indices", "ensure_weight_tying")  # fmt: skip
    chosen = {"target_modules": job.others.target_modules} if job.others else {}
    left = _CHOOSING if job.others else ()
    return {**config, **{key: old[key] for key in kept if old.get(key) is not None and key not in left}, **chosen}
