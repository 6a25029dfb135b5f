"""`init`: the surgery, from a checkpoint to a residual base and an adapter that together are the same model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

from ..adapters.peft import ADAPTER_CONFIG
from ..checkpoint.index import Checkpoint, read_checkpoint
from ..checkpoint.machine import parse_size
from ..checkpoint.source import SourceOptions, user_path
from ..display.shown import shows_progress
from ..methods import Method, find_method
from ..output.adapter import AdapterWriter
from ..output.atomic import Output, building, require_possible
from ..output.base import BaseWriter, copy_file, left_out, require_readable
from ..output.cards.source import Source, source_of_model
from ..output.init_folder import InitFolder
from ..output.layout import restate_index
from ..output.lr_groups import lr_document
from ..output.manifest import ExtraRecord, Manifest, ModuleRecord, read_manifest
from ..output.names import ADAPTER_FOLDER, LR_GROUPS, MANIFEST, OFFSET_FOLDER
from ..output.place import output_folder
from ..output.ranks import Ranks, read_ranks
from ..output.sources import Sources
from ..output.spans import sha256, write_json, write_text
from ..output.work import WorkFolder, find
from ..progress import Progress, heard
from ..surgery.describe import adapter_name, cards, extra_record, manifest, peft_config, provenance, warnings
from ..surgery.operation import Operation, plan_operation, spell_out
from ..surgery.settings import ROUNDS, Settings
from ..targets.extras import Extra
from ..targets.module_names import installed_transformers_major
from ..targets.module_tree import ModuleCheck, UnbuiltError, check_modules
from ..team.sharing import share
from ..team.team import Job, find_team
from .announce import announce
from .init_matrices import call_for_plan, computing, help_init, unpacked
from .initialization import Initialization
from .processes import (
    Library,
    Matrix,
    agree_on_kind,
    call_for_work,
    credit,
    device_of,
    is_published,
    processes,
    publishing,
)
from .shards import copied_by_all, hashed_by_all


@shows_progress
def initialize(
    model: str | Path = ".",
    rank: int | None = None,
    *,
    ranks: str | Path | None = None,
    method: str = "ailora",
    output: str | Path | None = None,
    roles: Sequence[str] | None = None,
    layers: str | None = None,
    alpha: int | None = None,
    rslora: bool = False,
    dora: bool = False,
    bias: str = "none",
    adapter_dtype: str = "float32",
    base_dtype: str = "keep",
    rounding: str = "auto",
    grid: str | None = None,
    rounds: int = ROUNDS,
    group_size: int | None = None,
    no_base: bool = False,
    modules_to_save: Sequence[str] = (),
    trainable_tokens: str | None = None,
    model_class: str | None = None,
    num_labels: int | None = None,
    seed: int = 0,
    device: str = "auto",
    memory: str | int | None = None,
    q_tensor: str | None = None,
    v_tensor: str | None = None,
    transformers_major: int | None = None,
    overwrite: bool = False,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    mixed: bool = False,
    shared_folder: bool = True,
    progress: Progress | bool | None = None,
    **source: Unpack[SourceOptions],
) -> Initialization:
    """Write an adapter that starts from the weights, and the base without what went into it.

    `model` is a folder, one .safetensors file, or a Hub id with options `source`; `output` defaults to
    `<name>-<method>-r<rank>` here. `method` is a row of `methods.METHODS`, or a rule for each role such as
    "q=principal,v=minor" (rules: `methods.RULES`), which then names the roles; else `roles` defaults to q and v. With
    `dora` PEFT trains magnitudes beside the factors, from the norms of the original's rows; `bias` is PEFT's (none,
    all, lora_only).

    `rank` defaults to 8; `ranks` is a ranks.json with a rank and an alpha for each module, and then `rank` and `alpha`
    are for those it does not list. `alpha` defaults to `rank`, which makes the
    scaling 1 (with `rslora`, sqrt(rank)). `transformers_major` (4 or 5; default: the installed one) decides how modules
    are named. With `no_base` nothing of the base is written: `ailora_offset`, a frozen adapter with -B A, takes its
    place beside the untouched model, which may then also be quantised. With `grid` (nf4, fp4) the residual lies on that
    grid of bitsandbytes, in the dtype of the base, so that `load_in_4bit` gives its numbers bit for bit; principal
    components are found anew of what the grid loses, in at most `rounds` rounds. Method qalora reads sums over groups
    of `group_size` inputs (default: the groups of the base, which has to be in GPTQ's format).

    What trains beside the factors: `modules_to_save` names modules as PEFT does (classifier, lm_head), whose tensors
    are copied from the base into the adapter; `trainable_tokens`, such as "3,7,32000-32010", rows of the input
    embedding. `model_class` is the class of transformers that will train, where that is not the one of config.json:
    modules are called as in it, and a head that the base lacks is made anew, with `num_labels` (default: as config.json
    says). `memory` is how much to use at most ("8GB"): how many matrices are worked on at a time depends on it and on
    the cores, no byte does. The other options take the values that `ailora-tools init --help` lists. Same source,
    options and device give the same bytes.

    Under torchrun all processes call this, the first one alone writes, and the others get no manifest. Results come to
    it as files beside the output, without `shared_folder` by torchrun's store. `mixed` allows machines of several
    kinds, on which a matrix may have other last bits.

    Raises CheckpointError, TargetError, OptionError, NumericalError or OutputError. Then nothing stands under
    the final name; the source is never written to.

    >>> made = initialize("model", rank=2, output="made")
    >>> made.adapter.name, [record.role for record in made.manifest.modules]
    ('ailora_init', ['q', 'v', 'q', 'v'])
    >>> max(record.reconstruction_error for record in made.manifest.modules) < 1e-6
    True
    """
    progress = heard(progress)
    limit = None if memory is None else parse_size(memory)
    sizes = Ranks(None, {}, {}) if ranks is None else read_ranks(user_path(ranks, "--ranks"))
    general = rank if rank is not None else sizes.rank or 8
    row, roles = find_method(method, roles)
    settings = Settings(
        rank=general, method=row.name, roles=roles, layers=layers, alpha=general if alpha is None else alpha,
        rslora=rslora, dora=dora, bias=bias, adapter_dtype=adapter_dtype, base_dtype=base_dtype,
        rounding=rounding, seed=seed, device=device, q_tensor=q_tensor, v_tensor=v_tensor,
        transformers_major=transformers_major or installed_transformers_major(),
        rank_pattern=sizes.rank_pattern, alpha_pattern=sizes.alpha_pattern, no_base=no_base,
        modules_to_save=_names(modules_to_save), trainable_tokens=trainable_tokens, model_class=model_class,
        num_labels=num_labels, grid=grid, rounds=None if grid is None else rounds, group_size=group_size,
    )  # fmt: skip
    with find_team().job("init") as job:
        if not job.leads:
            return Initialization(help_init(job, model, settings, row, limit, mixed, source), None)
        library = Library(job)
        checkpoint = read_checkpoint(library.open(model, **source))
        settings, row, left = spell_out(checkpoint, settings, row)
        _tell(left, progress)
        default = f"{checkpoint.origin.name}-{row.slug}-{f'r{general}' if ranks is None else 'ranks'}"
        folder = output_folder(output, default, [checkpoint.origin], progress)
        out = Output(folder, "init", overwrite=overwrite, resume=resume or job.restarted, force=force)
        if out.resume:
            settings = replace(settings, unbuilt=_unbuilt_before(folder))
        run = _Run(job, library, row, progress, dry_run, limit, mixed, shared_folder)
        while True:
            try:
                return run.attempt(checkpoint, settings, out)
            except UnbuiltError as error:  # rare: the class, asked beside the work, has not all of it; start anew
                settings = replace(settings, unbuilt=tuple(sorted({*settings.unbuilt, *error.modules})))


def _names(names: Sequence[str]) -> tuple[str, ...]:
    """Each once; a single name may be given by itself."""
    return tuple(dict.fromkeys([names] if isinstance(names, str) else names))


@dataclass
class _Run:
    """What the attempts at one `init` have in common."""

    job: Job
    library: Library
    row: Method
    progress: Progress
    dry_run: bool
    memory: int | None
    mixed: bool
    shared_folder: bool
    told: set[str] = field(default_factory=set)

    def attempt(self, checkpoint: Checkpoint, settings: Settings, out: Output) -> Initialization:
        """One plan carried out, with what was not `told` before; UnbuiltError, with nothing left of it, if the class
        turns out not to build all of it."""
        operation = plan_operation(checkpoint, settings, self.row, out.final)
        copied = left_out(checkpoint) if operation.layouts else []
        require_readable(checkpoint, operation.companions)
        self._tell(*operation.plan.notices, *copied)
        announce(checkpoint.files, operation.reads, operation.source_bytes, self.progress)
        call_for_plan(self.job, self.library, operation)
        if is_published(self.job, out.final):
            return Initialization(operation, read_manifest(out.final))
        sources = Sources((checkpoint.files, [*checkpoint.headers, *operation.companions]))
        out = replace(out, job={**operation.job(), "files": sources.to_json()}, nbytes=operation.nbytes)
        with checking(operation) as check:
            if self.dry_run:
                require_possible(out)
                _tell(check.finish().notices, self.progress)
                return Initialization(operation, None)
            with building(out, publishing(self.job, out.final, sources.require_unchanged)) as work:
                manifest = self._operate(operation, work, check)
        return Initialization(operation, manifest)

    def _tell(self, *notices: str) -> None:
        _tell([text for text in notices if text not in self.told], self.progress)
        self.told.update(notices)

    def _operate(self, operation: Operation, work: WorkFolder, check: ModuleCheck) -> Manifest:
        """The main path: start copying; read, decompose and store one matrix after the other; seal and describe."""
        files, carriers, progress = operation.checkpoint.files, operation.plan.carriers, self.progress
        adapter = _adapter_writer(operation, work.tree / ADAPTER_FOLDER, operation.extras)
        offset = _adapter_writer(operation, work.tree / OFFSET_FOLDER) if operation.offset else None
        layouts, copied = operation.layouts, dict(work.finished("copied"))
        shared = work.root if layouts and self.shared_folder and not self.job.alone else None
        with BaseWriter(files, layouts, work.tree, copied, alone=shared is None) as base:
            # Here torch loads (about a second) while the shards are already being copied.
            device = device_of(operation.settings.device, self.job, progress.notice)
            kind = agree_on_kind(work, device, self.mixed)
            folder = InitFolder(work, adapter, base, offset)
            progress.start("Decomposing", len(carriers), len(folder.records))
            waiting = [Matrix(carrier) for carrier in carriers if carrier.module not in folder.records]
            spool = call_for_work(self.job, kind, work, self.shared_folder)
            computed = computing(operation, device, progress.notice, self.memory)
            with copied_by_all(self.job, base, files, layouts, shared, progress):
                for matrix, part in share(self.job, "matrices", waiting, computed, spool, progress):
                    credit(files.traffic, part)
                    folder.store(*unpacked(matrix.carrier, part, operation, device))
                    progress.advance(matrix.carrier.label, matrix.nbytes)
                    check.look()
                progress.start("Copying", len(base.shards), 0)
                extras = [_store_extra(extra, operation, adapter) for extra in operation.extras]
                for shard in folder.seal():
                    progress.advance(shard, layouts[shard].size)
            hashes = hashed_by_all(self.job, layouts, shared, progress)
            verdict = check.finish()
            records = [record for carrier in carriers for record in folder.records[carrier.module]]
            original = source_of_model(files)
            _tell([*verdict.notices, *warnings(records), *original.notices], progress)
            ran_on = {"device": str(device), **processes(self.job)}
            return _describe(operation, work.tree, folder, records, extras, original, hashes, verdict.exact, ran_on)


def _unbuilt_before(folder: Path) -> tuple[str, ...]:
    """What the class was found not to build by an interrupted run for this folder."""
    jobs = [work.owner.get("job") for work in find(folder)]
    found = [job.get("unbuilt") for job in jobs if isinstance(job, dict)]
    return tuple(str(module) for modules in found if isinstance(modules, list) for module in modules)


@contextmanager
def checking(operation: Operation) -> Iterator[ModuleCheck]:
    """Ask whether the modules are there while the work goes on; the answer is wanted before the folder appears."""
    settings = operation.settings
    check = check_modules(operation.checkpoint, operation.plan, settings.selection, settings.transformers_major)
    try:
        yield check
    finally:
        check.cancel()


def _tell(notices: Sequence[str], progress: Progress) -> None:
    for text in notices:
        progress.notice(text)


def _adapter_writer(operation: Operation, folder: Path, extras: Sequence[Extra] = ()) -> AdapterWriter:
    """DoRA's magnitudes belong to the adapter that trains, and so do `extras`: the frozen one has neither."""
    return AdapterWriter(
        folder, operation.modules, operation.adapter_dtype, provenance(operation), operation.settings.dora,
        [(adapter_name(extra), extra.dtype, extra.shape) for extra in extras],
    )  # fmt: skip


def _store_extra(extra: Extra, operation: Operation, adapter: AdapterWriter) -> ExtraRecord:
    """Written anew by a resumed run: nothing else has to be remembered of it."""
    from ..checkpoint.stream import matrix_bytes
    from ..surgery.extras import values

    data = matrix_bytes(values(extra, operation.checkpoint.files, operation.settings.seed))
    adapter.write_extra(adapter_name(extra), data)
    return extra_record(extra, sha256(data))


def _describe(
    operation: Operation, tree: Path, folder: InitFolder, records: Sequence[ModuleRecord],
    extras: Sequence[ExtraRecord], original: Source, hashes: Mapping[str, str], short: bool, ran_on: Mapping[str, str],
) -> Manifest:  # fmt: skip
    """Everything besides the weights: copied files, the adapter's config, the cards, and last the manifest."""
    for name in operation.companions:
        copy_file(operation.checkpoint.files, name, tree / name)
    if operation.layouts:
        restate_index(tree, operation.checkpoint, operation.base_dtypes)
    write_json(tree / ADAPTER_FOLDER / ADAPTER_CONFIG, peft_config(operation, short))
    if operation.offset:
        write_json(tree / OFFSET_FOLDER / ADAPTER_CONFIG, peft_config(operation, short, frozen=True))
    for name, text in cards(operation, records, original).items():
        write_text(tree / name, text)
    write_json(tree / LR_GROUPS, lr_document(records))
    proof = manifest(operation, records, extras, folder.file_hashes(hashes), ran_on)
    write_text(tree / MANIFEST, proof.to_json())
    return proof
