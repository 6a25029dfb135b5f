"""Whether adapter_config.json says what init wrote: PEFT obeys every field of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..adapters.peft import ADAPTER_CONFIG, AdapterModule, adapter_config, hits, pattern_value
from ..checkpoint.header import quoted
from ..errors import AiloraError, listed
from ..output.names import ADAPTER_FOLDER
from ..output.spans import file_text
from ..targets.extras import Wanted
from ..targets.matching import last_word
from ..targets.plan import target_modules
from .folder import Check
from .subject import Subject

_BASE_NAME, _REVISION = "base_model_name_or_path", "revision"
# Told in sentences of their own; the targets may be short or long, and the base may have moved.
_APART = ("init_lora_weights", "peft_type", "use_dora", "target_modules", _BASE_NAME, _REVISION)


def check_adapter_config(subject: Subject) -> Check:
    """PEFT will load the stored factors, into exactly the modules of the manifest, with the right scaling, and the
    config holds no field and no value besides those that init writes."""
    if not subject.modules:
        return Check("adapter config", False, "the manifest names no module")
    try:
        config = subject.adapter_config
        faults = [*_named_faults(config, subject), *_field_faults(config, subject), *_spelling(subject)]
    except AiloraError as error:
        return Check("adapter config", False, f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG} cannot be read: {error.problem}")
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, re.error) as error:
        return Check("adapter config", False, f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG} cannot be read: {error}")
    detail = f"init_lora_weights is true; target_modules name all {len(subject.modules)} modules"
    return Check("adapter config", not faults, "; ".join(faults[:4]) or detail)


def _named_faults(config: Mapping[str, Any], subject: Subject) -> Iterator[str]:
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
    if not (idle or missed) and targets not in _possible_targets(subject):
        yield f"target_modules are {quoted(targets)}, not as init writes them"
    if bool(config.get("use_dora")) != subject.manifest.settings["dora"]:
        yield f"use_dora is {config.get('use_dora')!r}, expected {subject.manifest.settings['dora']}"
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}, not 'LORA'"
    yield from _base_faults(config, subject)
    yield from _scaling_faults(config, subject)


def _possible_targets(subject: Subject) -> list[list[str]]:
    """In full, or as last names where those hit nothing else."""
    operation, paths = subject.operation, sorted(subject.modules)
    if operation is not None:
        return [paths, target_modules(operation.plan, operation.checkpoint)]
    return [paths, sorted({last_word(path) for path in paths})]


def _base_faults(config: Mapping[str, Any], subject: Subject) -> Iterator[str]:
    """What `relink` or `push` have written; else a residual base was an absolute path, and may have moved since, and
    without one it is the source."""
    manifest, name = subject.manifest, config.get(_BASE_NAME)
    moved, source = manifest.moved, manifest.source
    expected = moved["name"] if moved else str(source["location"]).removeprefix("hf://")
    revision = moved["revision"] if moved else None if manifest.base else source["revision"]
    text = name if isinstance(name, str) else ""
    if not moved and manifest.base:
        if not any(kind(text).is_absolute() for kind in (PurePosixPath, PureWindowsPath)):
            yield f"{_BASE_NAME} is {quoted(name)}, not the folder that init wrote"
    elif name != expected:
        yield f"{_BASE_NAME} is {quoted(name)}, expected {quoted(expected)}"
    if config.get(_REVISION) != revision:
        yield f"{_REVISION} is {quoted(config.get(_REVISION))}, expected {quoted(revision)}"


def _scaling_faults(config: Mapping[str, Any], subject: Subject) -> Iterator[str]:
    """Rank, alpha and scaling of each module as PEFT finds them, against the records."""
    for module, records in subject.modules.items():
        rank = pattern_value(config.get("rank_pattern"), module, config.get("r"))
        alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha"))
        found = (rank, alpha, bool(config.get("use_rslora")))
        sums = (sum(record.rank for record in records), sum(record.alpha for record in records))
        expected = (*sums, bool(subject.manifest.settings["rslora"]))
        scaling = subject.scaling(module)
        if found != expected:
            yield f"{module} gets (rank, alpha, rslora) {found}, expected {expected}"
        elif scaling is None or not all(math.isclose(scaling, record.scaling, rel_tol=1e-12) for record in records):
            yield f"{module} is scaled by {scaling}, recorded is {listed([str(one.scaling) for one in records])}"


def _field_faults(config: Mapping[str, Any], subject: Subject) -> Iterator[str]:
    """Every other field, by name and value; 0, 0.0 and false are three values."""
    expected = _as_written(subject)
    if not _architectures(subject) and config.get("task_type") in (None, "CAUSAL_LM"):
        expected["task_type"] = config.get("task_type")  # it follows from the classes that the source names
    for name in sorted((config.keys() | expected.keys()) - set(_APART)):
        if name not in expected:
            yield f"{name} is {quoted(config[name])}, a field that init does not write"
        elif name not in config:
            yield f"{name} is missing"
        elif json.dumps(config[name], sort_keys=True) != json.dumps(expected[name], sort_keys=True):
            yield f"{name} is {quoted(config[name])}, expected {quoted(expected[name])}"


def _as_written(subject: Subject) -> dict[str, Any]:
    """The config that init writes for these records."""
    manifest = subject.manifest
    modules = [
        AdapterModule(
            module, (records[0].outputs, records[0].shape[1]), sum(one.rank for one in records),
            sum(one.alpha for one in records),
        )
        for module, records in subject.modules.items()
    ]  # fmt: skip
    beside = Wanted(tuple(manifest.settings.get("modules_to_save") or ()), manifest.settings.get("trainable_tokens"))
    return adapter_config(
        modules,
        [],
        base="",
        revision=None,
        architectures=_architectures(subject),
        saved=beside.modules,
        tokens=beside.rows,
        rslora=manifest.settings["rslora"],
        dora=manifest.settings["dora"],
        bias=str(manifest.settings.get("bias")),
        group=manifest.settings.get("group_size"),
        transposed=any(one.part is not None and one.part.transposed for one in manifest.modules),
    )


def _architectures(subject: Subject) -> tuple[str, ...]:
    """The class that will train, if it was named; else those of the source, where that is at hand."""
    named = subject.manifest.settings.get("model_class")
    return (str(named),) if named else subject.source.architectures if subject.source else ()


def _spelling(subject: Subject) -> Iterator[str]:
    """Of a key that stands twice Python's readers take the last, others the first."""
    files = subject.adapter_files
    text = files.read(ADAPTER_CONFIG, 0, files.size(ADAPTER_CONFIG)).decode()
    if text != file_text(json.loads(text)):
        yield "it is not spelt as init writes it (a key twice, or other white space)"
