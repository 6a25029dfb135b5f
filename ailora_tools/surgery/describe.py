"""What is told about an operation: the manifest and its records, the adapter's config and metadata, the card."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..adapters.peft import adapter_config, token_name
from ..checkpoint.files import Origin
from ..methods import ERROR_TAKEN, RULES
from ..metrics.motion import role_motion
from ..output.about_grid import about_grid
from ..output.cards.compose import library_of
from ..output.cards.facts import CardFacts
from ..output.cards.source import Source
from ..output.cards.start import start_cards
from ..output.loading import Loader, absolute, find_loader
from ..output.manifest import ExtraRecord, Manifest, ModuleRecord
from ..targets.extras import Extra
from ..targets.plan import target_modules
from ..targets.projections import Carrier, Target
from ..version import __version__
from .operation import Operation

if TYPE_CHECKING:
    from .decompose import Numbers


def planned_record(operation: Operation, carrier: Carrier, target: Target) -> dict[str, Any]:
    """The fields of the manifest's entry for one projection that follow from the plan and the settings alone."""
    return {
        "module": target.module,
        "tensor": target.tensor,
        "file": target.stored.file,
        "role": target.role,
        "layer": target.layer,
        "stack": target.stack,
        "shape": target.shape,
        "dtype": target.stored.dtype,
        "base_dtype": operation.base_dtype(carrier),
        "part": target.part,
        "outputs": carrier.sides[0],
        "rule": operation.method.rule(target.role).name,
        "rank": operation.settings.rank_of(target.module),
        "alpha": operation.settings.alpha_of(target.module),
        "scaling": operation.scaling(carrier),
    }


def module_record(
    operation: Operation, carrier: Carrier, target: Target, numbers: Numbers, hashes: tuple[str, str, str]
) -> ModuleRecord:
    """The manifest's entry for one projection; `hashes` are SHA-256 of W, of W_res, and of the module's A and B."""
    source_sha256, base_sha256, adapter_sha256 = hashes
    return ModuleRecord(
        **planned_record(operation, carrier, target),
        source_sha256=source_sha256,
        base_sha256=base_sha256,
        adapter_sha256=adapter_sha256,
        **asdict(numbers),
    )


def adapter_name(extra: Extra) -> str:
    """Under which PEFT reads it, behind its prefix."""
    return token_name(extra.path.removesuffix(".weight")) if extra.rows else extra.path


def planned_extra(extra: Extra) -> dict[str, Any]:
    """The fields of the manifest's entry that follow from the plan and the settings alone."""
    stored = extra.stored
    return {
        "name": adapter_name(extra),
        "tensor": None if stored is None else stored.name,
        "file": None if stored is None else stored.file,
        "shape": extra.shape,
        "dtype": extra.dtype,
        "start": extra.start,
        "std": extra.std,
        "rows": extra.rows,
    }


def extra_record(extra: Extra, digest: str) -> ExtraRecord:
    """The manifest's entry for one tensor beside the factors."""
    return ExtraRecord(**planned_extra(extra), sha256=digest)


def manifest(
    operation: Operation, records: Sequence[ModuleRecord], extras: Sequence[ExtraRecord],
    files: Mapping[str, Mapping[str, Any]], ran_on: Mapping[str, str],
) -> Manifest:  # fmt: skip
    """The proof: modules in reading order and the hash of every file. ran_on: the device, and how many processes."""
    tool = {"ailora_tools": __version__, "torch": version("torch"), "python": platform.python_version()}
    return Manifest(
        tool={**tool, **ran_on},
        source=operation.source(),
        settings=asdict(operation.settings),
        base=bool(operation.layouts),
        offset=operation.offset,
        motion=role_motion((record.role, record.motion) for record in records),
        modules=tuple(records),
        files=files,
        notices=operation.plan.notices,
        extras=tuple(extras),
    )


def peft_config(operation: Operation, short: bool, frozen: bool = False) -> dict[str, Any]:
    """adapter_config.json; the base it names is the residual one, or the source if that is untouched.

    short: write last names such as q_proj into target_modules, where they match no other module; else full paths.
    frozen: of the adapter that stands for the residual base, beside which nothing trains.
    """
    carriers, settings, origin = operation.plan.carriers, operation.settings, operation.checkpoint.origin
    paths = sorted(carrier.module for carrier in carriers)
    original = origin.location if origin.path is None else str(origin.path.resolve())
    return adapter_config(
        operation.modules,
        target_modules(operation.plan, operation.checkpoint) if short else paths,
        base=str(operation.folder) if operation.layouts else original,
        revision=None if operation.layouts else origin.revision,
        architectures=operation.checkpoint.architectures,
        rslora=settings.rslora,
        dora=settings.dora,
        bias=settings.bias,
        transposed=any(carrier.transposed for carrier in carriers),
        saved=() if frozen else settings.beside.modules,
        tokens=() if frozen else settings.beside.rows,
        group=settings.group_size,
    )


def provenance(operation: Operation) -> dict[str, str]:
    """For the adapter's own metadata, in case it is separated from the manifest."""
    settings = operation.settings
    text = {"tool": "ailora-tools", "version": __version__, "method": settings.method}
    return {**text, "rank": str(settings.rank), "seed": str(settings.seed)}


def warnings(records: Sequence[ModuleRecord]) -> Iterator[str]:
    """What the user must know before training: a step 0 that is not the original's, and what has to stay frozen."""
    yield from about_grid(records)
    poor = [one for one in records if one.reconstruction_error > ERROR_TAKEN and one.grid_error is None]
    if poor:
        worst = max(poor, key=lambda record: record.reconstruction_error)
        yield (
            f"step 0 is not the original model: {len(poor)} of {len(records)} matrices differ by more than "
            f"{ERROR_TAKEN:.0%}, {worst.module} by {worst.reconstruction_error:.1%}; a residual in {worst.base_dtype} "
            f"cannot hold what {worst.rule} moves: use --base-dtype float32"
        )
    for factor in sorted({RULES[record.rule].frozen for record in records} - {""}):
        yield (
            f"{factor} is to stay frozen, and the adapter's config cannot say so: call "
            f"ailora_tools.freeze_{factor.lower()}(model, adapter_dir) after loading; a trainer that loads the adapter "
            f"by itself would train {factor} too"
        )


def cards(operation: Operation, records: Sequence[ModuleRecord], original: Source) -> dict[str, str]:
    """Every README.md of the folder -> its text."""
    settings = operation.settings
    facts = CardFacts(
        folder=operation.folder,
        original=original,
        library=library_of(operation.checkpoint.config, original),
        method=operation.method,
        ranks=sorted({record.rank for record in records}),
        alphas=sorted({record.alpha for record in records}),
        seed=settings.seed,
        base=_place(operation).location,
        source=_source_name(operation.checkpoint.origin),
        has_base=bool(operation.layouts),
        has_offset=operation.offset,
        quantised=any(carrier.quantised for carrier in operation.plan.carriers),
        loader=loader(operation, records),
        dora=settings.dora,
        rslora=settings.rslora,
        bias=settings.bias,
        grid=settings.grid,
        extras=tuple((adapter_name(extra), extra.stored is None) for extra in operation.extras),
    )
    return start_cards(facts, records)


def loader(operation: Operation, records: Sequence[ModuleRecord]) -> Loader:
    """What loads the base of the adapter, from where it lies."""
    checkpoint = operation.checkpoint
    dtypes = {record.base_dtype: record.dtype for record in records}
    return find_loader(
        checkpoint.config, _place(operation), checkpoint.headers, dtypes, bool(operation.layouts),
        operation.settings.num_labels,
    )  # fmt: skip


def _place(operation: Operation) -> Origin:
    """The folder itself, or the source where that is left alone."""
    return Origin(str(operation.folder)) if operation.layouts else absolute(operation.checkpoint.origin)


def _source_name(origin: Origin) -> str:
    """The source as a command takes it, from anywhere."""
    if origin.path is not None:
        return str(origin.path.resolve())
    if not origin.subfolder:
        return f"{origin.location}@{origin.revision}"
    return f"https://huggingface.co/{origin.location}/tree/{origin.revision}/{origin.subfolder}"
