"""`export`: an adapter, at its start, trained or converted, as the file that another trainer reads."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.folder import Adapter, open_adapter
from ..adapters.peft import ADAPTER_FILES
from ..adapters.pooled import sums_over_groups
from ..adapters.trainers import COMPONENTS, Context, Pair, find_trainer
from ..checkpoint.arithmetic import ieee
from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.gate import read_json, stated_path
from ..checkpoint.index import CONFIG
from ..checkpoint.source import open_files, user_path
from ..display.shown import shows_progress
from ..errors import TargetError, listed
from ..output.atomic import Output, making
from ..output.cards.made import exported_card
from ..output.cards.source import Source, source_of_adapter, source_of_model
from ..output.manifest import read_manifest
from ..output.names import ADAPTER_FOLDER, CARD, MANIFEST, OFFSET_FOLDER
from ..output.place import output_folder
from ..output.result import write_result
from ..output.sources import Sources
from ..output.spans import write_json, write_new, write_text
from ..progress import Progress, heard
from .result import Result

_IN_BIASES = (
    "sums over groups of inputs: the biases of a base in MLX's format can hold them, without an adapter beside it: "
    "`ailora-tools merge BASE ADAPTER --zeros float -o OUT`"
)


@dataclass(frozen=True, repr=False)
class Exported(Result):
    """The folder, the files in it, how many modules they hold, and what to do with them in the trainer."""

    folder: Path
    trainer: str
    files: tuple[str, ...]
    modules: int
    load: str

    _columns = ("file",)

    def told(self) -> str:
        """For which trainer, and where it lies."""
        return f"for {self.trainer}: {self.modules} modules, {self.folder}"

    def rows(self) -> list[dict[str, Any]]:
        """One record a file."""
        return [{"file": str(self.folder / name)} for name in self.files]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder), "to": self.trainer, "files": list(self.files), "modules": self.modules,
            "load": self.load,
        }  # fmt: skip


@shows_progress
def export(
    adapter: str | Path,
    to: str,
    output: str | Path,
    *,
    base: str | Path | None = None,
    component: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
) -> Exported:
    """Write `adapter` for `to`: "torchtune", "mlx" or "diffusers".

    `adapter` is a folder of `initialize`, whose `ailora_init` is meant, or any LoRA folder. `base` is the model it is
    for, whose config.json torchtune's row order needs; default: the folder itself, then the base that the adapter
    names. `component` (diffusers) defaults to the subfolder that `initialize` was given. No input is changed. In
    torchtune and MLX one rank and one scaling hold for all modules: smaller ranks are filled up with zeros, the scaling
    goes into B.

    Raises CheckpointError, TargetError for DoRA, `modules_to_save` and models the trainer does not know, OutputError.

    >>> export("start", "mlx", "for-mlx").files
    ('adapters.safetensors', 'adapter_config.json', 'lora_config.yaml')
    """
    row = find_trainer(to)
    root = user_path(adapter, "ADAPTER")
    held = open_adapter(root / ADAPTER_FOLDER if (root / MANIFEST).is_file() else root)
    _require_base(root, to)
    _require_plain(held, to)
    progress = heard(progress)
    folder = output_folder(output, "", [held.files.origin], progress)
    if to == "mlx" and sums_over_groups(held):
        progress.notice(_IN_BIASES)
    context = _context(held, root, folder, base, component)
    with ieee():
        made = row.make(_pairs(held), context)
    result = Exported(folder, to, (row.file, *made.configs), len(held.modules), row.load(context))
    original = _original(held, root)
    for text in original.notices:
        progress.notice(text)
    sources = Sources((held.files, ADAPTER_FILES))
    with making(Output(folder, "export", overwrite=overwrite, force=force), sources.require_unchanged) as tree:
        _save(tree / row.file, dict(made.tensors), dict(made.metadata))
        for name, config in made.configs.items():
            _write_config(tree / name, config)
        write_text(tree / CARD, exported_card(folder.name, original, to, result.modules, result.load))
        write_result(tree, {"verb": "export", "adapter": held.location, **result.to_json()})
    return result


def _original(held: Adapter, root: Path) -> Source:
    """The model it is for, by the folder of `init` that it lies in or was trained on, else by what it says itself."""
    trained_on = stated_path(held.config.get("base_model_name_or_path"))
    for place in (root, root.parent, *([trained_on] if trained_on else [])):
        with suppress(OSError):  # a folder that may not be entered
            if (place / MANIFEST).is_file():
                return source_of_model(LocalFiles(place))
    return source_of_adapter(held.files, held.config)


def _require_base(root: Path, to: str) -> None:
    """TargetError for a start on the untouched original, where it counts twice without the frozen adapter beside it."""
    if any((folder / OFFSET_FOLDER).is_dir() for folder in (root, *([root.parent] * (root.name == ADAPTER_FOLDER)))):
        raise TargetError(
            f"{root} is a start on the untouched original (--no-base), where what `init` moved counts twice unless it "
            f"is taken out again: {to} has no place for a second adapter that is frozen.",
            "Start with a residual base: `init` without --no-base. A trained adapter: `ailora-tools convert` it first.",
        )


def _require_plain(held: Adapter, to: str) -> None:
    faults = [
        *(["DoRA magnitudes"] if held.dora else []),
        *([f"whole tensors such as {listed([*held.others, *held.tokens], 2)}"] if held.others or held.tokens else []),
        *(["a LoRA of an embedding"] if any(factors.embedding for factors in held.modules.values()) else []),
        *(["biases of lora_B"] if any(factors.bias for factors in held.modules.values()) else []),
    ]
    if faults:
        raise TargetError(
            f"{held.location} holds {' and '.join(faults)}, for which {to} has no place here.",
            "Merge the adapter into its base instead: ailora-tools merge BASE ADAPTER -o OUT.",
        )


def _pairs(held: Adapter) -> dict[str, Pair]:
    return {
        module: Pair(held.load(factors.A), held.load(factors.B), factors.scaling)
        for module, factors in held.modules.items()
    }


def _context(held: Adapter, root: Path, folder: Path, base: str | Path | None, component: str | None) -> Context:
    start = root if (root / MANIFEST).is_file() and read_manifest(root).base else None
    named = str(base or start or held.config.get("base_model_name_or_path") or "BASE")
    return Context(_model_config(held, root, base), named, component or _component(root), held.config, folder)


def _model_config(held: Adapter, root: Path, base: str | Path | None) -> dict[str, Any]:
    """config.json of the model; empty if none is at hand. CheckpointError if it is not a JSON object."""
    files = _nearby(held, root) if base is None else open_files(base)
    return read_json(files, CONFIG, constants=True) if files is not None and CONFIG in files.names() else {}


def _nearby(held: Adapter, root: Path) -> Files | None:
    """The first folder with a config.json: the given one, the one above it, the base that the adapter names."""
    named = held.config.get("base_model_name_or_path")
    for place in (root, root.parent, *([Path(named)] if isinstance(named, str) and named else [])):
        try:
            if (place / CONFIG).is_file():
                return LocalFiles(place)
        except OSError:  # a folder that may not be entered
            continue
    return None


def _component(root: Path) -> str:
    """Where `init` was given a component of a pipeline, its name; empty where it was not."""
    for place in (root, root.parent):
        if (place / MANIFEST).is_file():
            source = read_manifest(place).source
            name = str(source["subfolder"] or Path(str(source["location"])).name)
            return name if name in COMPONENTS else ""
    return ""


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    if path.suffix == ".json":
        write_json(path, config)
    else:
        write_text(path, "".join(_yaml(config)))


def _yaml(config: Mapping[str, Any], inset: str = "") -> Iterator[str]:
    """Block style, values as JSON, which YAML contains."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield f"{inset}{key}:\n"
            yield from _yaml(value, f"{inset}  ")
        else:
            yield f"{inset}{key}: {json.dumps(value)}\n"


def _save(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """Through memory: what the libraries raise when a disk fails is no OSError, and their files are for one user."""
    import torch
    from safetensors.torch import save

    if path.suffix == ".pt":
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        write_new(path, buffer.getvalue())
    else:
        write_new(path, save(tensors, metadata))
