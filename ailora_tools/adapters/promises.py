"""What adapter_config.json says that the adapter has, and its tensors do not show.

PEFT is silent about a module without tensors: it starts anew. Only what is certain counts here: the config may name
modules that the class of the base does not build, or several heads of which a model has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..errors import TargetError, listed
from .expressions import covers
from .folder import Adapter
from .peft import ADAPTER_CONFIG, hits

_HEADS = ("classifier", "score", "qa_outputs")  # PEFT writes all that a task may have, a model has one
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Base:
    """What promises are held against: paths of the modules that have a matrix, of those that have a bias, and the
    base's config.json, which is empty where only the modules of a start are known (of_start)."""

    modules: tuple[str, ...]
    biases: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    of_start: bool = False


def require_promised(adapter: Adapter, bound: Mapping[str, str], base: Base) -> None:
    """TargetError that names what the config promises and the file lacks; `bound` maps the adapter's modules to those
    of the base."""
    present = set(bound.values())
    faults = [*_saved(adapter), *_biases(adapter, present, base), *_tokens(adapter)]
    faults += [*_targets(adapter, present, base), *_idle(adapter, present, base)]
    if faults:
        raise TargetError(
            f"{adapter.location} is incomplete: {ADAPTER_CONFIG} says more than its tensors: {listed(faults, 4)}.",
            "The trainer saved only a part: save the adapter again, or correct its config.",
        )


def _saved(adapter: Adapter) -> list[str]:
    """Names of modules_to_save without a tensor."""
    names = adapter.config.get("modules_to_save") or ()
    held = [name for name in names if any(f"{name}." in path for path in adapter.others)]
    tied = bool(adapter.config.get("ensure_weight_tying")) and held  # saved once
    heads = any(name in _HEADS for name in held)
    absent = [name for name in names if name not in held and not (name in _HEADS and heads) and not tied]
    return [f"modules_to_save names {name}, of which there is no tensor" for name in absent]


def _biases(adapter: Adapter, present: set[str], base: Base) -> list[str]:
    kind = adapter.config.get("bias") or "none"
    lacking = [name for name in base.biases if kind == "all" or name in present]
    if kind == "none" or not lacking or any(path.endswith("bias") for path in adapter.others):
        return []
    return [f"bias is {kind!r}, but there is no bias"]


def _tokens(adapter: Adapter) -> list[str]:
    stated = adapter.config.get("trainable_token_indices")
    if not stated:
        return []
    names = list(stated) if isinstance(stated, Mapping) else []
    absent = [name for name in names if not any(hits(name, module) for module in adapter.tokens)]
    alike = len({str(stated[name]) for name in names}) == 1  # PEFT saves them once where the modules are tied
    if adapter.tokens and (not absent or alike or adapter.config.get("ensure_weight_tying")):
        return []
    return [f"trainable_token_indices are set, but there are no new rows of {listed(absent) or 'an embedding'}"]


def _targets(adapter: Adapter, present: set[str], base: Base) -> list[str]:
    """Modules of the base that the targets hit, in a stack that the adapter reaches, without tensors."""
    _require_readable(adapter)
    targeted = _targeted(adapter.config)
    kinds = {_NUMBER.sub("*", module) for module in present}
    stacks = {_stack(module) for module in present}
    absent = []
    for module in base.modules:
        if module in present or not _NUMBER.search(module) or _stack(module) not in stacks:
            continue
        alike = _NUMBER.sub("*", module) in kinds
        if targeted(module, alike) and (alike or ".experts." not in module) and _built(module, base.config):
            absent.append(module)
    if not absent:
        return []
    return [f"target_modules hit {len(absent)} modules without tensors, such as {listed(sorted(absent))}"]


def _idle(adapter: Adapter, present: set[str], base: Base) -> list[str]:
    """Entries of target_modules that hit no module with tensors, though the base has one: a part outside the layers.
    Of a start every entry hits a module."""
    entries = adapter.config.get("target_modules")
    told = []
    for entry in entries if isinstance(entries, list) else ():
        if any(hits(entry, module) for module in (*present, *adapter.modules)) or _is_saved(adapter.config, entry):
            continue
        found = [module for module in base.modules if hits(entry, module) and not _is_saved(adapter.config, module)]
        if (found and not any(_NUMBER.search(module) for module in found)) or base.of_start:
            told.append(f"target_modules name {entry}, of which there is no tensor")
    return told


def _require_readable(adapter: Adapter) -> None:
    """TargetError that names the field whose expression cannot be matched in bounded time."""
    for name in ("target_modules", "exclude_modules"):
        try:
            if isinstance(expression := adapter.config.get(name), str):
                covers(expression, "")
        except TargetError as error:
            where = adapter.files.where(ADAPTER_CONFIG)
            hint = f"Write {name} as a list of module names, or as an expression without references and look-around."
            raise TargetError(f"{where}: {name}: {error.problem}", hint) from None


def _stack(module: str) -> str:
    """The list of layers that a module belongs to, as a path."""
    return _NUMBER.split(module)[0]


def _targeted(config: Mapping[str, Any]) -> Callable[[str, bool], bool]:
    """PEFT's rule for one module; of "all-linear" only the kinds of modules that the adapter has elsewhere."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or ()
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    chosen = {layers} if isinstance(layers, int) else set(layers or ())
    lists = [patterns] if isinstance(patterns, str) else patterns

    def hit(entries: object, module: str) -> bool:
        if isinstance(entries, str):
            return covers(entries, module)
        return isinstance(entries, list | tuple) and any(hits(entry, module) for entry in entries)

    def targeted(module: str, alike: bool) -> bool:
        wanted = alike if targets == "all-linear" else hit(targets, module)
        if not wanted or hit(excluded, module) or _is_saved(config, module):
            return False
        named = not isinstance(targets, list) or module in targets  # then layers say nothing
        return named or not chosen or _layers(module, lists) <= chosen

    return targeted


def _layers(module: str, lists: Collection[str]) -> set[int]:
    """The numbers of a module that layers_to_transform may mean, in lists of those names if there are any: the first in
    PEFT 0.21, the last in older ones. -1 where there is none."""
    parts = module.split(".")
    numbers = [int(part) for name, part in pairwise(parts) if part.isdecimal() and (not lists or name in lists)]
    return {numbers[0], numbers[-1]} if numbers else {-1}


def _is_saved(config: Mapping[str, Any], module: str) -> bool:
    """Whether modules_to_save names the module or one around it: PEFT puts no LoRA there."""
    return any(f".{name}." in f".{module}." for name in config.get("modules_to_save") or ())


def _built(module: str, config: Mapping[str, Any]) -> bool:
    """Whether the layer is below the number of layers that config.json states, and no one that shares its keys and
    values with another."""
    text = config.get("text_config")
    stated = {**config, **(text if isinstance(text, dict) else {})}
    found = _NUMBER.search(module)
    number = int(found[0]) if found else 0
    count, shared = stated.get("num_hidden_layers"), stated.get("num_kv_shared_layers")
    if not isinstance(count, int) or isinstance(count, bool):
        return True
    own = count - shared if isinstance(shared, int) else count
    return number < (own if module.endswith((".k_proj", ".v_proj")) else count)
