"""Adapters that other trainers saved, read as PEFT's: mlx-lm, torchtune and diffusers, as `trainers` writes for them.

mlx-lm (mlx_lm/lora.py, tuner/lora.py): adapters.safetensors, its rank and scale in a config of its own. torchtune
(training/checkpointing/_checkpointer.py): adapter_model.pt, rank and alpha in adapter_config.json, and the model's
config.json copied beside it. What torchtune saves in PEFT's names besides is not read: for Qwen2 its rows are permuted
though those of the model are not. diffusers (loaders/peft.py): PEFT's names, its LoraConfig in the header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import Files
from ..checkpoint.gate import INDEX_BYTES, Factor, Rank, View, parse, read_json, typed
from ..checkpoint.header import FLOATS, StoredTensor, quoted
from ..checkpoint.index import CONFIG, read_header
from ..errors import CheckpointError, TargetError, listed
from .peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, tensor_names
from .trainers import DIFFUSERS_WEIGHTS, METADATA, MLX_WEIGHTS, TORCHTUNE_WEIGHTS, peft_rows
from .translated import Entry, TranslatedFiles

if TYPE_CHECKING:
    from torch import Tensor

_EPOCH = re.compile(rf"{re.escape(TORCHTUNE_WEIGHTS)}|adapter_\d+\.pt")  # of torchtune; one a folder, or one an epoch
_START_CONFIG = "ailora_init/adapter_config.json"  # torchtune copies what lies beside the weights of its base


@dataclass(frozen=True)
class _Format:
    """Whether a folder with these files is of this trainer, and how it is read."""

    recognised: Callable[[Files, Collection[str]], bool]
    read: Callable[[Files, Collection[str]], TranslatedFiles]


def as_peft(files: Files) -> Files:
    """`files`, or where they hold what another trainer saved, the same as PEFT would have saved it.

    Raises CheckpointError for what cannot be read, TargetError for what is no LoRA of linear layers.
    """
    names = set(files.names())
    found = next((form for form in _FORMATS if form.recognised(files, names)), None)
    return found.read(files, names) if found else files


def is_returned(files: Files, names: Collection[str]) -> bool:
    """Whether what another trainer saved is among the files `names`."""
    return any(form.recognised(files, names) for form in _FORMATS)


class _Parameters(View):
    """lora_parameters of mlx-lm."""

    rank: Rank
    scale: Factor


class _Config(View):
    """adapter_config.json of torchtune."""

    r: Rank
    lora_alpha: Factor


def _of_mlx(files: Files, names: Collection[str]) -> bool:
    """Without a config it is damaged, but what it is can be told."""
    return MLX_WEIGHTS in names and (ADAPTER_CONFIG not in names or "peft_type" not in read_json(files, ADAPTER_CONFIG))


def _read_mlx(files: Files, names: Collection[str]) -> TranslatedFiles:
    """lora_a (in, r) and lora_b (r, out), transposed."""
    if ADAPTER_CONFIG not in names:
        raise CheckpointError(
            f"{files.where(MLX_WEIGHTS)}: {ADAPTER_CONFIG} is missing, and with it the scale.",
            "Copy it from the folder that mlx_lm.lora wrote.",
        )
    stated = read_json(files, ADAPTER_CONFIG, INDEX_BYTES)
    kind = stated.get("fine_tune_type", "lora")
    if kind != "lora":
        raise TargetError(
            f"{files.where(ADAPTER_CONFIG)}: fine_tune_type is {quoted(kind)}; only lora of mlx-lm is known.",
            "Fuse it into its base with mlx_lm.fuse, and work with the fused checkpoint.",
        )
    hint = "Copy the config from the folder that mlx_lm.lora wrote."
    held = typed(stated.get("lora_parameters"), f"{files.where(ADAPTER_CONFIG)}, lora_parameters", _Parameters, hint)
    pairs = _pairs_of_mlx(files)
    config = _config(held.rank, held.scale * held.rank, pairs, stated.get("model"))
    return TranslatedFiles(
        files, config, _entries(pairs), {ADAPTER_WEIGHTS: MLX_WEIGHTS, ADAPTER_CONFIG: ADAPTER_CONFIG}
    )


def _pairs_of_mlx(files: Files) -> dict[str, dict[str, Tensor]]:
    from ..checkpoint.stream import load_matrix

    stored = read_header(files, MLX_WEIGHTS).tensors
    strange = [name for name, info in stored.items() if not name.endswith((".lora_a", ".lora_b")) or not _flat(info)]
    _require_known(files.where(MLX_WEIGHTS), strange, "lora_a or lora_b of a linear layer", "mlx_lm.fuse")
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, info in stored.items():
        module, _, side = name.rpartition(".")
        pairs.setdefault(module, {})[side[-1].upper()] = load_matrix(files, info).T
    return pairs


def _flat(info: StoredTensor) -> bool:
    return len(info.shape) == 2 and info.dtype in FLOATS


def _of_torchtune(files: Files, names: Collection[str]) -> bool:
    return any(_EPOCH.fullmatch(name) for name in names)


def _read_torchtune(files: Files, names: Collection[str]) -> TranslatedFiles:
    """Its own names and rotary rows; rank and alpha from the config, heads from that of the model."""
    found = sorted(name for name in names if _EPOCH.fullmatch(name))
    lacking = [name for name in (ADAPTER_CONFIG, CONFIG) if name not in names]
    if len(found) > 1 or lacking:
        fault = f"{listed(found)} are several adapters" if len(found) > 1 else f"{listed(lacking)} missing beside it"
        raise CheckpointError(
            f"{files.where(found[0])}: {fault}; an adapter of torchtune needs its rank and alpha ({ADAPTER_CONFIG}), "
            f"and its order of rows the model's {CONFIG}.",
            f"Put one adapter into a folder with both: a config of {{'r': 8, 'lora_alpha': 8}} is enough, and {CONFIG} "
            "is that of the model it was trained on.",
        )
    hint = "Save it with torchtune's recipe again, or write the rank and alpha of its training."
    held = typed(read_json(files, ADAPTER_CONFIG), files.where(ADAPTER_CONFIG), _Config, hint)
    state = _unpickled(files, found[0])
    pairs = peft_rows(state, read_json(files, CONFIG, constants=True), files.where(found[0]))
    base = read_json(files, _START_CONFIG).get("base_model_name_or_path") if _START_CONFIG in names else None
    config = _config(held.r, held.lora_alpha, pairs, base)
    return TranslatedFiles(files, config, _entries(pairs), {ADAPTER_WEIGHTS: found[0], ADAPTER_CONFIG: ADAPTER_CONFIG})


def _unpickled(files: Files, name: str) -> dict[str, Tensor]:
    """Tensors by name; no code of the file runs."""
    import io
    from pickle import UnpicklingError

    import torch

    try:
        raw = io.BytesIO(files.read(name, 0, files.size(name)))
        state = torch.load(raw, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, AttributeError, IndexError) as error:
        told = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{files.where(name)}: cannot be read as tensors alone: {told}.", _AGAIN) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) and _is_matrix(one) for key, one in state.items()):
        raise CheckpointError(f"{files.where(name)}: it is no adapter: expected names and matrices of floats.", _AGAIN)
    return state


def _is_matrix(value: object) -> bool:
    import torch

    from ..checkpoint.stream import DTYPES

    known = {DTYPES[name] for name in FLOATS}
    return isinstance(value, torch.Tensor) and value.dim() == 2 and value.dtype in known and not value.is_sparse


_AGAIN = "Save or copy it again."


def _of_diffusers(files: Files, names: Collection[str]) -> bool:
    return DIFFUSERS_WEIGHTS in names and ADAPTER_CONFIG not in names


def _read_diffusers(files: Files, names: Collection[str]) -> TranslatedFiles:
    """PEFT's own tensors: behind the component's name if a pipeline saved them, bare if a model did."""
    header = read_header(files, DIFFUSERS_WEIGHTS)
    where = files.where(DIFFUSERS_WEIGHTS)
    if METADATA not in header.metadata:
        raise CheckpointError(
            f"{where}: its header has no {METADATA}, and so alpha is not known.",
            "Save it with a diffusers that writes the LoraConfig (0.35 or newer), or with PEFT.",
        )
    config = parse(header.metadata[METADATA].encode(), f"{where}, {METADATA}")
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: {METADATA} is no JSON object.", _AGAIN)
    component = _component(where, config, header.tensors)
    inner = {key.removeprefix(component): value for key, value in config.items()}
    tensors = (
        (
            PREFIX + name.removeprefix(component),
            info.dtype,
            info.shape,
            files.read(DIFFUSERS_WEIGHTS, info.start, info.stop),
        )
        for name, info in header.tensors.items()
    )
    return TranslatedFiles(
        files,
        {"peft_type": "LORA", **inner},
        tensors,
        {ADAPTER_WEIGHTS: DIFFUSERS_WEIGHTS, ADAPTER_CONFIG: DIFFUSERS_WEIGHTS},
    )


def _component(where: str, config: Mapping[str, Any], tensors: Collection[str]) -> str:
    """The name and dot before all settings and tensors, "" for none; TargetError where there are several."""
    found = {f"{key.partition('.')[0]}." if "." in key else "" for key in config}
    component = next(iter(found), "")
    if len(found) > 1 or not all(name.startswith(component) for name in tensors):
        raise TargetError(
            f"{where}: holds adapters of several components: {listed(sorted(found))}.",
            "Save one component alone: model.save_lora_adapter(folder).",
        )
    return component


def _config(rank: int, alpha: float, modules: Collection[str], base: object) -> dict[str, Any]:
    """adapter_config.json of exactly these modules."""
    named = base if isinstance(base, str) else None
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(modules),
        "base_model_name_or_path": named,
    }  # fmt: skip


def _entries(pairs: Mapping[str, Mapping[str, Tensor]]) -> Iterator[Entry]:
    """lora_A and lora_B of every module that has them; one that is missing is found by the reader of PEFT's files."""
    from ..checkpoint.stream import DTYPES, matrix_bytes

    kinds = {dtype: name for name, dtype in DTYPES.items()}
    for module, sides in pairs.items():
        for side, name in zip("AB", tensor_names(module), strict=True):
            if side in sides:
                tensor = sides[side]
                yield name, kinds[tensor.dtype], tuple(tensor.shape), matrix_bytes(tensor)


def _require_known(where: str, strange: list[str], known: str, other: str) -> None:
    if strange:
        raise TargetError(
            f"{where}: {listed(strange)} cannot be read: only {known}.",
            f"Merge the adapter into its base with {other}, and work with the merged checkpoint.",
        )


_FORMATS = (
    _Format(_of_mlx, _read_mlx),
    _Format(_of_torchtune, _read_torchtune),
    _Format(_of_diffusers, _read_diffusers),
)
