"""Checks of a finished folder that need no arithmetic: its files, its adapter, what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..adapters.folder import read_config
from ..adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, hits, magnitude_name, pattern_value, tensor_names
from ..checkpoint.files import LocalFiles
from ..checkpoint.header import Header, tensor_bytes
from ..checkpoint.index import read_header
from ..errors import AiloraError, CheckpointError, listed
from ..output.adapter import negated
from ..output.names import ADAPTER_FOLDER, MANIFEST, OFFSET_FOLDER
from ..output.spans import read_span, sha256_file
from .subject import Subject


@dataclass(frozen=True)
class Check:
    """One statement about the folder: whether it holds, and what was found."""

    name: str
    holds: bool
    detail: str


def check_files(subject: Subject) -> Check:
    """Every file of the manifest is there, of the right size, and hashes as it did when written."""
    faults, total = [], 0
    for name, expected in subject.manifest.files.items():
        path = subject.folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif (size := path.stat().st_size) != expected["size"]:
            faults.append(f"{name} has {size:,} bytes, expected {expected['size']:,}")
        elif sha256_file(path) != expected["sha256"]:
            faults.append(f"{name} was changed")
        total += expected["size"]
    detail = f"{len(subject.manifest.files)} files, {total / 1e9:.2f} GB: sizes and SHA-256 as written"
    return Check("files", not faults, listed(faults, 5) or detail)


def check_neighbours(subject: Subject) -> Check:
    """Nothing beside the base that loaders would take for part of it."""
    strangers = [
        path.name
        for path in subject.folder.iterdir()
        if path.name not in subject.manifest.files
        and path.name != MANIFEST
        and (path.suffix in (".safetensors", ".bin") or path.name == ADAPTER_CONFIG)
    ]
    if strangers:
        return Check("neighbours", False, f"would be loaded with the base: {listed(strangers)}")
    return Check("neighbours", True, "no foreign weights or adapter beside config.json")


def check_adapter_config(subject: Subject) -> Check:
    """PEFT will load the stored factors, into exactly the modules of the manifest, with the right scaling."""
    path = subject.folder / ADAPTER_FOLDER / ADAPTER_CONFIG
    try:
        config = read_config(LocalFiles(path.parent))
        faults = list(_config_faults(config, subject))
    except AiloraError as error:
        return Check("adapter config", False, f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG} cannot be read: {error.problem}")
    detail = f"init_lora_weights is true; targets reach all {len(subject.modules)} modules"
    return Check("adapter config", not faults, "; ".join(faults[:4]) or detail)


def check_adapter_tensors(subject: Subject) -> Check:
    """The adapter file holds A and B of every module, in the right shape, and nothing else."""
    try:
        header = read_header(subject.adapter_files, ADAPTER_WEIGHTS)
    except CheckpointError as error:
        return Check("adapter tensors", False, error.problem)
    faults = list(_tensor_faults(header, subject))
    return Check("adapter tensors", not faults, listed(faults) or f"{len(header.tensors)} tensors, shapes as planned")


def check_offset(subject: Subject) -> Check:
    """The frozen adapter takes exactly that out of the original which the other one puts back."""
    try:
        first, second = (
            read_header(LocalFiles(subject.folder / name), ADAPTER_WEIGHTS) for name in (ADAPTER_FOLDER, OFFSET_FOLDER)
        )
        configs = [(subject.folder / name / ADAPTER_CONFIG).read_bytes() for name in (ADAPTER_FOLDER, OFFSET_FOLDER)]
        wrong = [name for name in first.tensors if not _opposite(subject, first, second, name)]
    except (CheckpointError, OSError, KeyError) as error:
        return Check("offset", False, f"{OFFSET_FOLDER} cannot be read: {error}")
    if configs[0] != configs[1]:
        wrong.append(ADAPTER_CONFIG)
    detail = f"{OFFSET_FOLDER} is {ADAPTER_FOLDER} with the other sign, in all {len(subject.modules)} modules"
    return Check("offset", not wrong, f"does not undo {ADAPTER_FOLDER}: {listed(wrong)}" if wrong else detail)


def _opposite(subject: Subject, first: Header, second: Header, name: str) -> bool:
    here, there = first.tensors[name], second.tensors[name]
    A, B = (
        read_span(subject.folder / of / ADAPTER_WEIGHTS, at.start, at.stop)
        for of, at in ((ADAPTER_FOLDER, here), (OFFSET_FOLDER, there))
    )
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        return False
    return B == (A if ".lora_A." in name else negated(A, tensor_bytes(here.dtype, (1,))))


def _config_faults(config: dict[str, Any], subject: Subject) -> Iterator[str]:
    tag = config.get("init_lora_weights")
    if tag is not True:
        yield f"init_lora_weights is {tag!r}, not true: loaders would change the base or the factors again"
    targets = config.get("target_modules")
    wanted = [targets] if isinstance(targets, str) else list(targets or ())
    modules = list(subject.modules)
    idle = [target for target in wanted if not any(hits(target, module) for module in modules)]
    if idle:
        yield f"target_modules entries that hit nothing: {listed(idle)}"
    missed = [module for module in modules if not any(hits(target, module) for target in wanted)]
    if missed:
        yield f"target_modules do not reach {listed(missed)}"
    if bool(config.get("use_dora")) != subject.manifest.settings["dora"]:
        yield f"use_dora is {config.get('use_dora')!r}, expected {subject.manifest.settings['dora']}"
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}, not 'LORA'"
    for module, records in subject.modules.items():
        rank = pattern_value(config.get("rank_pattern"), module, config.get("r"))
        alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha"))
        found = (rank, alpha, bool(config.get("use_rslora")))
        sums = (sum(record.rank for record in records), sum(record.alpha for record in records))
        expected = (*sums, bool(subject.manifest.settings["rslora"]))
        if found != expected:
            yield f"{module} gets (rank, alpha, rslora) {found}, expected {expected}"


def _tensor_faults(header: Header, subject: Subject) -> Iterator[str]:
    expected: dict[str, tuple[int, ...]] = {}
    for module, records in subject.modules.items():
        name_a, name_b = tensor_names(module)
        rank = sum(record.rank for record in records)
        expected[name_a] = (rank, records[0].shape[1])
        expected[name_b] = (records[0].outputs, rank)
        if subject.manifest.settings["dora"]:
            expected[magnitude_name(module)] = (records[0].outputs,)
    for name, shape in expected.items():
        if name not in header.tensors:
            yield f"{name} is missing"
        elif header.tensors[name].shape != shape:
            yield f"{name} has shape {header.tensors[name].shape}, expected {shape}"
    yield from (f"{name} belongs to no module" for name in header.tensors if name not in expected)
