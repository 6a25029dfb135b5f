"""Checks of a finished folder that need no arithmetic: its files, its adapter, what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters.folder import read_config
from ..adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MAGNITUDE_DTYPE, PREFIX, magnitude_name, tensor_names
from ..checkpoint.files import Files, below
from ..checkpoint.header import FACTOR_DTYPES, Header, tensor_bytes
from ..checkpoint.index import read_header
from ..checkpoint.shards import OTHER_WEIGHTS
from ..errors import AiloraError, CheckpointError, listed
from ..output.adapter import negated
from ..output.manifest import Manifest
from ..output.names import ADAPTER_FOLDER, CARD, LR_GROUPS, MANIFEST, OFFSET_FOLDER
from ..output.spans import file_text
from .subject import Subject

# What transformers, PEFT, diffusers, vLLM, llama.cpp and their like open by its name or ending.
_TAKEN = (".safetensors", *OTHER_WEIGHTS, ".json", ".jinja", ".py", ".model", ".tiktoken", ".spm")
_TAKEN_BY_NAME = ("vocab.txt", "merges.txt")
_SEARCHED = (ADAPTER_FOLDER, OFFSET_FOLDER, "additional_chat_templates")  # folders whose files are taken, too


@dataclass(frozen=True)
class Check:
    """One statement about the folder: whether it holds, and what was found."""

    name: str
    holds: bool
    detail: str


def check_files(subject: Subject, faults: Mapping[str, str]) -> Check:
    """Every file of the manifest is there, of the right size, and hashes as it did when written; else `faults` has what
    is wrong with it, "" for nothing."""
    files = subject.manifest.files
    wrong = [f"{name} {faults[name]}" for name in files if faults[name]]
    total = sum(expected["size"] for expected in files.values())
    detail = f"{len(files)} files, {total / 1e9:.2f} GB: sizes and SHA-256 as written"
    return Check("files", not wrong, listed(wrong, 5) or detail)


def file_fault(subject: Subject, name: str, expected: int) -> str:
    """What is wrong with one file of the manifest before it is read, "" if nothing; `expected`: its bytes."""
    folder = subject.folder
    if folder is None:
        size = subject.files.size(name) if name in subject.files.names() else None
        return "is missing" if size is None else _size_fault(size, expected)
    path = folder / name
    if _led_away(folder.resolve(), name):
        return "is a link, or lies outside: what it leads to may change"
    if not path.is_file():
        return "is missing"
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return _size_fault(size, expected)


def _size_fault(size: int, expected: int) -> str:
    return "" if size == expected else f"has {size:,} bytes, expected {expected:,}"


def _led_away(root: Path, name: str) -> bool:
    """Whether a name leads elsewhere; the cache of the Hub keeps every file as a link into the blobs beside."""
    target = (root / name).resolve()
    cache = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    return target.parent != cache and (target != root / name or not target.is_relative_to(root))


def check_neighbours(subject: Subject) -> Check:
    """Nothing beside base and adapter that loaders would take for part of them."""
    names = subject.files.names() if subject.folder is None else _beside(subject.folder)
    strangers = sorted(name for name in names if loadable(name) and name not in {*subject.manifest.files, MANIFEST})
    if strangers:
        return Check("neighbours", False, f"would be loaded with the base: {listed(strangers)}")
    return Check("neighbours", True, "no foreign weights, code, config or adapter beside them")


def _beside(folder: Path) -> list[str]:
    """Names of all that lies where loaders look, files or not."""
    places = [folder, *(folder / name for name in _SEARCHED)]
    return [path.relative_to(folder).as_posix() for place in places if place.is_dir() for path in place.iterdir()]


def loadable(name: str) -> bool:
    """Whether some loader would take a file of that name, relative to the folder. Hidden ones are left alone."""
    place, _, last = name.rpartition("/")
    taken = last.lower().endswith(_TAKEN) or last in _TAKEN_BY_NAME
    return taken and not last.startswith(".") and place in ("", *_SEARCHED)


def own_files(manifest: Manifest) -> set[str]:
    """What init itself writes, the shards aside."""
    folders = [ADAPTER_FOLDER, *([OFFSET_FOLDER] if manifest.offset else [])]
    adapters = {f"{folder}/{name}" for folder in folders for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD)}
    return {CARD, LR_GROUPS, MANIFEST, *adapters}


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
        folders = [below(subject.files, name) for name in (ADAPTER_FOLDER, OFFSET_FOLDER)]
        first, second = (read_header(folder, ADAPTER_WEIGHTS) for folder in folders)
        configs = [_without_extras(folder) for folder in folders]
        shared = first.tensors.keys() & second.tensors.keys()
        wrong = [name for name in first.tensors if name in shared and not _opposite(folders, first, second, name)]
        beside = {f"{PREFIX}{extra.name}" for extra in subject.manifest.extras}
        wrong += sorted((first.tensors.keys() - beside) ^ second.tensors.keys())
    except (AiloraError, OSError, KeyError) as error:
        return Check("offset", False, f"{OFFSET_FOLDER} cannot be read: {error}")
    if configs[0] != configs[1]:
        wrong.append(ADAPTER_CONFIG)
    detail = f"{OFFSET_FOLDER} is {ADAPTER_FOLDER} with the other sign, in all {len(subject.modules)} modules"
    return Check("offset", not wrong, f"does not undo {ADAPTER_FOLDER}: {listed(wrong)}" if wrong else detail)


def _without_extras(files: Files) -> str:
    """The config without what trains beside the factors, which the frozen adapter has not."""
    config = {**read_config(files), "modules_to_save": None}
    config.pop("trainable_token_indices", None)
    return file_text(config)


def _opposite(folders: Sequence[Files], first: Header, second: Header, name: str) -> bool:
    here, there = first.tensors[name], second.tensors[name]
    A, B = (
        bytes(files.read(ADAPTER_WEIGHTS, at.start, at.stop)) for files, at in zip(folders, (here, there), strict=True)
    )
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        return False
    return B == (A if ".lora_A." in name else negated(A, tensor_bytes(here.dtype, (1,))))


def _tensor_faults(header: Header, subject: Subject) -> Iterator[str]:
    settings = subject.manifest.settings
    dtype = FACTOR_DTYPES.get(str(settings.get("adapter_dtype")), "")
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for module, records in subject.modules.items():
        name_a, name_b = tensor_names(module)
        rank = sum(record.rank for record in records)
        expected[name_a] = dtype, (rank, records[0].shape[1] // (settings.get("group_size") or 1))
        expected[name_b] = dtype, (records[0].outputs, rank)
        if settings["dora"]:
            expected[magnitude_name(module)] = MAGNITUDE_DTYPE, (records[0].outputs,)
    expected |= {f"{PREFIX}{extra.name}": (extra.dtype, extra.shape) for extra in subject.manifest.extras}
    for name, (kind, shape) in expected.items():
        if name not in header.tensors:
            yield f"{name} is missing"
        elif header.tensors[name].shape != shape:
            yield f"{name} has shape {header.tensors[name].shape}, expected {shape}"
        elif header.tensors[name].dtype != kind:
            yield f"{name} is stored as {header.tensors[name].dtype}, expected {kind}"
    yield from (f"{name} belongs to no module" for name in header.tensors if name not in expected)
