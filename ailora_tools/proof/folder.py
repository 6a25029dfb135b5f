"""Checks of a finished folder that need no arithmetic: its files, its adapter, what lies beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.peft import CONFIG, WEIGHTS, hits, magnitude_name, pattern_value, tensor_names
from ..checkpoint.files import LocalFiles
from ..checkpoint.header import Header, tensor_bytes
from ..checkpoint.index import read_header
from ..errors import CheckpointError, listed
from ..output.adapter import FOLDER, OFFSET, negated
from ..output.manifest import NAME, Manifest, ModuleRecord
from ..output.spans import read_span, sha256_file


@dataclass(frozen=True)
class Check:
    """One statement about the folder: whether it holds, and what was found."""

    name: str
    holds: bool
    detail: str


def check_files(folder: Path, manifest: Manifest) -> Check:
    """Every file of the manifest is there, of the right size, and hashes as it did when written."""
    faults, total = [], 0
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif (size := path.stat().st_size) != expected["size"]:
            faults.append(f"{name} has {size:,} bytes, expected {expected['size']:,}")
        elif sha256_file(path) != expected["sha256"]:
            faults.append(f"{name} was changed")
        total += expected["size"]
    detail = f"{len(manifest.files)} files, {total / 1e9:.2f} GB: sizes and SHA-256 as written"
    return Check("files", not faults, listed(faults, 5) or detail)


def check_neighbours(folder: Path, manifest: Manifest) -> Check:
    """Nothing beside the base that loaders would take for part of it."""
    strangers = [
        path.name
        for path in folder.iterdir()
        if path.name not in manifest.files
        and path.name != NAME
        and (path.suffix in (".safetensors", ".bin") or path.name == CONFIG)
    ]
    if strangers:
        return Check("neighbours", False, f"would be loaded with the base: {listed(strangers)}")
    return Check("neighbours", True, "no foreign weights or adapter beside config.json")


def check_adapter_config(folder: Path, manifest: Manifest) -> Check:
    """PEFT will load the stored factors, into exactly the modules of the manifest, with the right scaling."""
    path = folder / FOLDER / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        faults = list(_config_faults(config, manifest))
    except (OSError, ValueError, TypeError, AttributeError, re.error) as error:
        return Check("adapter config", False, f"{FOLDER}/{CONFIG} cannot be read: {error}")
    detail = f"init_lora_weights is true; targets reach all {len(_by_module(manifest.modules))} modules"
    return Check("adapter config", not faults, "; ".join(faults[:4]) or detail)


def check_adapter_tensors(folder: Path, manifest: Manifest) -> Check:
    """The adapter file holds A and B of every module, in the right shape, and nothing else."""
    try:
        header = read_header(LocalFiles(folder / FOLDER), WEIGHTS)
    except CheckpointError as error:
        return Check("adapter tensors", False, error.problem)
    faults = list(_tensor_faults(header, manifest))
    return Check("adapter tensors", not faults, listed(faults) or f"{len(header.tensors)} tensors, shapes as planned")


def check_offset(folder: Path, manifest: Manifest) -> Check:
    """The frozen adapter takes exactly that out of the original which the other one puts back."""
    try:
        first, second = (read_header(LocalFiles(folder / name), WEIGHTS) for name in (FOLDER, OFFSET))
        configs = [(folder / name / CONFIG).read_bytes() for name in (FOLDER, OFFSET)]
        wrong = [name for name in first.tensors if not _opposite(folder, first, second, name)]
    except (CheckpointError, OSError, KeyError) as error:
        return Check("offset", False, f"{OFFSET} cannot be read: {error}")
    if configs[0] != configs[1]:
        wrong.append(CONFIG)
    detail = f"{OFFSET} is {FOLDER} with the other sign, in all {len(_by_module(manifest.modules))} modules"
    return Check("offset", not wrong, f"does not undo {FOLDER}: {listed(wrong)}" if wrong else detail)


def _opposite(folder: Path, first: Header, second: Header, name: str) -> bool:
    here, there = first.tensors[name], second.tensors[name]
    A, B = (read_span(folder / of / WEIGHTS, at.start, at.stop) for of, at in ((FOLDER, here), (OFFSET, there)))
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        return False
    return B == (A if ".lora_A." in name else negated(A, tensor_bytes(here.dtype, (1,))))


def _config_faults(config: dict[str, Any], manifest: Manifest) -> Iterator[str]:
    tag = config.get("init_lora_weights")
    if tag is not True:
        yield f"init_lora_weights is {tag!r}, not true: loaders would change the base or the factors again"
    targets = config.get("target_modules")
    wanted = [targets] if isinstance(targets, str) else list(targets or ())
    modules = [record.module for record in manifest.modules]
    idle = [target for target in wanted if not any(hits(target, module) for module in modules)]
    if idle:
        yield f"target_modules entries that hit nothing: {listed(idle)}"
    missed = [module for module in modules if not any(hits(target, module) for target in wanted)]
    if missed:
        yield f"target_modules do not reach {listed(missed)}"
    if bool(config.get("use_dora")) != manifest.settings["dora"]:
        yield f"use_dora is {config.get('use_dora')!r}, expected {manifest.settings['dora']}"
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}, not 'LORA'"
    for module, records in _by_module(manifest.modules).items():
        rank = pattern_value(config.get("rank_pattern"), module, config.get("r"))
        alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha"))
        found = (rank, alpha, bool(config.get("use_rslora")))
        sums = (sum(record.rank for record in records), sum(record.alpha for record in records))
        expected = (*sums, bool(manifest.settings["rslora"]))
        if found != expected:
            yield f"{module} gets (rank, alpha, rslora) {found}, expected {expected}"


def _tensor_faults(header: Header, manifest: Manifest) -> Iterator[str]:
    expected: dict[str, tuple[int, ...]] = {}
    for module, records in _by_module(manifest.modules).items():
        name_a, name_b = tensor_names(module)
        rank = sum(record.rank for record in records)
        expected[name_a] = (rank, records[0].shape[1])
        expected[name_b] = (records[0].outputs, rank)
        if manifest.settings["dora"]:
            expected[magnitude_name(module)] = (records[0].outputs,)
    for name, shape in expected.items():
        if name not in header.tensors:
            yield f"{name} is missing"
        elif header.tensors[name].shape != shape:
            yield f"{name} has shape {header.tensors[name].shape}, expected {shape}"
    yield from (f"{name} belongs to no module" for name in header.tensors if name not in expected)


def _by_module(records: Sequence[ModuleRecord]) -> dict[str, list[ModuleRecord]]:
    groups: dict[str, list[ModuleRecord]] = {}
    for record in records:
        groups.setdefault(record.module, []).append(record)
    return groups
