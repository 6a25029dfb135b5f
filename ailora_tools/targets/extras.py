"""What trains beside the factors: whole modules (PEFT's modules_to_save) and rows of the input embedding.

PEFT wants every tensor of such a module in the adapter that it loads. Most are copies of the base's; a head that the
base lacks is made anew. The class that will train says which tensors those are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.header import FLOATS, StoredTensor, quoted
from ..checkpoint.index import Checkpoint
from ..errors import OptionError, TargetError, listed
from .module_names import parameter_paths
from .module_tree import parts_of_class
from .selection import parse_numbers
from .ties import tied_parameters
from .verdict import Answer

COPY, NORMAL, ZEROS, ONES = STARTS = ("copy", "normal", "zeros", "ones")
NEW_DTYPE = "F32"
_PLAIN = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")  # PEFT reads some of them as expressions
_HINT = "Name modules as the class calls them, such as classifier, score or lm_head."


@dataclass(frozen=True)
class Extra:
    """One tensor of the adapter: a parameter at `path` in memory, or the `rows` of it.

    start: a copy of `stored` in its dtype; or, with nothing stored, zeros, ones, or normal with deviation `std`, in
    float32. shape: of the rows, where there are any.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    start: str
    stored: StoredTensor | None = None
    std: float = 0.0
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """The options: names of modules to save; tokens, such as "3,7,32000-32010"; whether a head may be made anew."""

    modules: tuple[str, ...] = ()
    tokens: str | None = None
    new: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """The tokens in order; OptionError if they are no such list."""
        return tuple(sorted(parse_numbers(self.tokens, "--trainable-tokens"))) if self.tokens is not None else ()


def find_extras(
    checkpoint: Checkpoint, wanted: Wanted, adapted: Sequence[str], published: str | None = None
) -> tuple[tuple[Extra, ...], list[str]]:
    """Every tensor that trains beside the factors of the modules `adapted`, in the order of their paths; notices.
    published: the class that the checkpoint was saved from, where another will train.

    OptionError, TargetError that name everything at once which the class or the file lacks, that is of another shape,
    stored in few bits, or has an adapter already.
    """
    if not (wanted.modules or wanted.tokens is not None or wanted.new):
        return (), []
    if strange := [quoted(name) for name in wanted.modules if not _PLAIN.fullmatch(name)]:
        raise OptionError(f"--modules-to-save {listed(strange)}: no name of a module.", _HINT)
    places = _places(checkpoint)
    parts = parts_of_class(checkpoint, wanted.modules, list(places), published)
    if "unknown" in parts:
        parts = _parts_of_file(checkpoint, wanted, parts["unknown"])
    finder = _Finder(parts, places)
    hit = parts["hit"]
    faults = [*_idle(wanted.modules, parts), *_clashes(hit, adapted, parts["embedding"] if wanted.rows else None)]
    found = [*finder.saved(hit, wanted.new, faults), *finder.tokens(wanted.rows, faults)]
    if faults:
        raise TargetError(f"{checkpoint.location}: {listed(faults, 4)}.", _HINT)
    notices = _about_new(found)
    if wanted.new:
        notices += _about_unheld(checkpoint, parts, {extra.path for extra in found})
    return tuple(sorted(found, key=lambda extra: extra.path)), notices


def _about_new(extras: Sequence[Extra]) -> list[str]:
    """What the user must know about numbers that are nowhere in the base."""
    new = [f"{extra.path} {list(extra.shape)}" for extra in extras if extra.stored is None]
    return [f"made anew, because the base has none: {listed(sorted(new), 6)}"] if new else []


def _about_unheld(checkpoint: Checkpoint, parts: Answer, saved: set[str]) -> list[str]:
    """TargetError for parameters of the class that neither base nor adapter has: every loading would draw them anew,
    and the head be trained on numbers that no file keeps. A notice where the base may have them under another name."""
    unheld = {path: known for path, known in parts["unheld"].items() if path not in saved}
    lost = [path for path, known in unheld.items() if not known]
    if lost:
        modules = sorted({path.rpartition(".")[0] for path in lost})
        raise TargetError(
            f"{checkpoint.location}: {parts['class']} has {listed(lost)}, which the file lacks: every loading would "
            "draw them anew, and they would be saved nowhere.",
            f"Train them, too: {' '.join(f'--modules-to-save {module}' for module in modules[:4])}.",
        )
    return [f"{parts['class']} has {listed(list(unheld))}, which the file does not name so"] if unheld else []


def _parts_of_file(checkpoint: Checkpoint, wanted: Wanted, reason: str) -> Answer:
    """The same by the names in the file alone, where that suffices; TargetError where only the class can tell."""
    if wanted.new or wanted.tokens is not None:
        raise TargetError(
            f"{checkpoint.location}: what trains beside the adapter only the class can tell, and {reason}.",
            "Use a class of the installed transformers.",
        )
    states: dict[str, dict[str, Any]] = {}
    for path, stored in _places(checkpoint).items():
        words = path.split(".")
        for stop in range(1, len(words)):
            module, key = ".".join(words[:stop]), ".".join(words[stop:])
            if module.endswith(wanted.modules):
                states.setdefault(module, {})[key] = {"shape": list(stored.shape), "start": "", "same": []}
    return {"class": "the file", "hit": sorted(states), "embedding": None, "states": states, "std": 0.0,
            "unheld": {}}  # fmt: skip


def _places(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Path of a parameter in memory -> the tensor that holds it, shared ones included."""
    paths = parameter_paths(checkpoint)
    found = {path: checkpoint.tensors[name] for name, path in paths.items()}
    for group in tied_parameters(checkpoint):
        for name in group.others:
            found.setdefault(name, checkpoint.tensors[group.source])
    return found


def _idle(names: Iterable[str], parts: Answer) -> Iterator[str]:
    for name in names:
        if not any(path.endswith(name) for path in parts["hit"]):
            yield f"{parts['class']} has no module {quoted(name)} to save"


def _clashes(hit: Sequence[str], adapted: Sequence[str], embedding: str | None) -> Iterator[str]:
    """Modules to save inside of each other, with adapted ones in them or on them, or with tokens of their own."""
    for path in hit:
        inner = [other for other in (*hit, *adapted) if other.startswith(f"{path}.")]
        if path in adapted or any(path.startswith(f"{other}.") for other in adapted):
            yield f"{path} has an adapter, and cannot be saved whole"
        elif inner:
            yield f"{path} holds {listed(inner, 2)}, which train by themselves"
        if path == embedding or (embedding or "").startswith(f"{path}."):
            yield f"{path} trains whole already, and so do its tokens"


class _Finder:
    """Where the numbers of each parameter come from."""

    def __init__(self, parts: Answer, places: Mapping[str, StoredTensor]) -> None:
        self._parts, self._places = parts, places

    def saved(self, hit: Sequence[str], new: bool, faults: list[str]) -> Iterator[Extra]:
        """Every tensor in the state of these modules."""
        for module in hit:
            for key, state in self._parts["states"][module].items():
                path = f"{module}.{key}"
                stored = self._stored(path, state)
                if stored is not None and not (fault := _unfit(stored, state)):
                    yield Extra(path, stored.shape, stored.dtype, COPY, stored)
                elif stored is not None:
                    faults.append(fault)
                elif new and state["start"]:
                    std = float(self._parts["std"]) if state["start"] == NORMAL else 0.0
                    yield Extra(path, tuple(state["shape"]), NEW_DTYPE, state["start"], std=std)
                else:
                    faults.append(_lacking(path, new))

    def tokens(self, rows: tuple[int, ...], faults: list[str]) -> Iterator[Extra]:
        """The rows of the input embedding."""
        module = self._parts["embedding"]
        if not rows:
            return
        if module is None:
            faults.append(f"{self._parts['class']} has no input embedding with tokens to train")
            return
        state = self._parts["states"][module].get("weight", {"shape": [], "same": []})
        stored = self._stored(f"{module}.weight", state)
        if stored is None or (fault := _unfit(stored, state)):
            faults.append(_lacking(f"{module}.weight", True) if stored is None else fault)
        elif rows[-1] >= stored.shape[0]:
            faults.append(f"there is no token {rows[-1]}: {stored.name} has {stored.shape[0]} rows")
        else:
            path = f"{module}.weight"
            yield Extra(path, (len(rows), *stored.shape[1:]), stored.dtype, COPY, stored, rows=rows)

    def _stored(self, path: str, state: Mapping[str, Any]) -> StoredTensor | None:
        """Under its own name, or under that of a parameter which the class has it in common with."""
        return next((self._places[name] for name in (path, *state["same"]) if name in self._places), None)


def _unfit(stored: StoredTensor, state: Mapping[str, Any]) -> str:
    if stored.dtype not in FLOATS:
        return f"{stored.name} is stored as {stored.dtype}, which cannot train"
    if list(stored.shape) != state["shape"]:
        return f"{stored.name} has shape {list(stored.shape)}, the class builds {state['shape']}"
    return ""


def _lacking(path: str, new: bool) -> str:
    if new:
        return f"the file has no {path}, and how the class starts it is not known here"
    return f"the file has no {path}: --model-class, with the class that will train, makes a new one"
