"""A checkpoint in few bits as the plain one that it stands for: from headers alone, before a weight is read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint.header import FACTOR_DTYPES, StoredTensor, quoted
from ..checkpoint.index import Checkpoint
from ..errors import OptionError, TargetError, listed
from .quantisation import FORMATS, MAINS, SETTINGS, Quantised, find_quantised, quantization_config
from .text_config import text_config

# Files that say again how the weights are quantised: GPTQ's, AWQ's and ModelOpt's. Servers obey them.
SIDE_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# Beside a matrix in few bits, but no part of it: what the format calls itself, and how inputs and outputs are rounded.
_BESIDE = (
    ".weight_format", ".g_idx", ".weight_g_idx", ".weight_zero_point", ".input_scale", ".input_zero_point",
    ".input_scale_inv", ".input_global_scale", ".output_scale", ".output_zero_point",
)  # fmt: skip
_OF_CACHE = (".k_scale", ".v_scale", ".q_scale")  # of keys and values that are kept in 8 bits
_LOST = (".weight_scale_inv", ".weight_scale", ".weight_scale_2", ".weight_global_scale", ".weight_zero_point",
         ".scales", ".biases", ".SCB", ".qzeros", ".bitmask", ".compressed")  # fmt: skip
_FEW_BITS = ("F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U8", "I8",
             "U32")  # fmt: skip


@dataclass(frozen=True)
class Restored:
    """plain: the checkpoint without few bits: each matrix NAME.weight with its shape (out, in) and the dtype it will be
    stored in (its bytes are those of its main piece, which no one may take for numbers), no sidecars, and a config.json
    that says nothing of them. matrices: NAME.weight -> its pieces. dropped: every tensor that vanishes.

    in_zeros: the matrices stay in few bits, and what is written anew are their zero points or biases, which `plain` and
    `matrices` name in the place of theirs.
    """

    plain: Checkpoint
    matrices: Mapping[str, Quantised]
    dropped: frozenset[str]
    in_zeros: bool = False

    @property
    def added(self) -> dict[str, StoredTensor]:
        """What takes the place of pieces, and is none of them."""
        new = ((name, self.plain.tensors[name], held.pieces.values()) for name, held in self.matrices.items())
        return {name: stored for name, stored, pieces in new if stored not in pieces}


def restore(checkpoint: Checkpoint, dtype: str | None = None) -> Restored:
    """How `checkpoint` looks with every matrix in few bits as the numbers that it stands for; itself if it has none.

    dtype: "float32", "bfloat16" or "float16"; None: what config.json states. Raises OptionError where neither tells,
    TargetError for tensors in few bits whose meaning is not known.
    """
    matrices = _matrices(checkpoint)
    if not matrices:
        if dtype is not None:
            raise OptionError(f"--dtype {dtype}: {checkpoint.location} holds no matrix in few bits.", _KEEP)
        return Restored(checkpoint, {}, frozenset())
    _require_alone(checkpoint)
    kind = FACTOR_DTYPES[dtype or _stated_dtype(checkpoint)]
    dropped = frozenset(_dropped(checkpoint, matrices))
    _require_nothing_left(checkpoint, dropped)
    return Restored(_plain(checkpoint, matrices, dropped, kind, dtype), matrices, dropped)


def _matrices(checkpoint: Checkpoint) -> dict[str, Quantised]:
    """NAME.weight -> its pieces, in file order of the main ones."""
    known = {dtype for row in FORMATS for dtype in row.dtypes}
    mains = [stored for stored in checkpoint.tensors.values() if stored.dtype in known and len(stored.shape) == 2]
    found = ((stored.name, find_quantised(checkpoint, stored.name)) for stored in mains)
    return {_weight(name): quantised for name, quantised in found if quantised is not None}


def _weight(main: str) -> str:
    return f"{_stem(main)}.weight"


def _stem(main: str) -> str:
    return next(main.removesuffix(end) for end in (*MAINS, ".weight") if main.endswith(end))


def _dropped(checkpoint: Checkpoint, matrices: Mapping[str, Quantised]) -> Iterator[str]:
    stems = {name.removesuffix(".weight") for name in matrices}
    yield from (piece.name for quantised in matrices.values() for piece in quantised.pieces.values())
    for name, stored in checkpoint.tensors.items():
        stem = next((name.removesuffix(end) for end in _BESIDE if name.endswith(end)), None)
        of_matrix = stem in stems or (name.partition(".weight.")[0] in stems and ".weight." in name)
        if of_matrix or (name.endswith(_OF_CACHE) and stored.shape in ((), (1,))):
            yield name


def _require_alone(checkpoint: Checkpoint) -> None:
    """TargetError where the pieces are not all: compressed-tensors can rotate what goes into a matrix while it runs."""
    rotated = quantization_config(checkpoint.config).get("transform_config")
    if isinstance(rotated, dict) and rotated.get("config_groups"):
        raise TargetError(
            f"{checkpoint.location}: transform_config of config.json turns inputs and outputs of matrices while the "
            "model runs: the stored numbers alone are another model.",
            _ORIGINAL,
        )


def _require_nothing_left(checkpoint: Checkpoint, dropped: frozenset[str]) -> None:
    """TargetError for what would be taken for numbers, or be of no use, in a model that is quantised no more."""
    left = [
        f"{name} [{stored.dtype}]"
        for name, stored in checkpoint.tensors.items()
        if name not in dropped
        and ((stored.dtype in _FEW_BITS and len(stored.shape) > 1) or name.endswith((*_LOST, *MAINS)))
    ]
    if left:
        raise TargetError(
            f"{checkpoint.location}: {listed(left)} cannot be written as numbers: what they mean is not known.",
            _ORIGINAL,
        )


def _stated_dtype(checkpoint: Checkpoint) -> str:
    """What config.json says the model computes in."""
    configs = (checkpoint.config, text_config(checkpoint.config))
    stated = [config[key] for config in configs for key in ("dtype", "torch_dtype") if config.get(key) is not None]
    named = str(stated[0]).removeprefix("torch.") if stated else ""
    if named not in FACTOR_DTYPES:
        found = f"states the dtype {quoted(stated[0])}" if stated else "states no dtype"
        raise OptionError(
            f"{checkpoint.location}: config.json {found}: it is not clear how its matrices in few bits are to be kept.",
            "Say so: --dtype bfloat16, float16 or float32.",
        )
    return named


def _plain(
    checkpoint: Checkpoint, matrices: Mapping[str, Quantised], dropped: frozenset[str], kind: str, dtype: str | None
) -> Checkpoint:
    """Headers as of the plain model, in the order of the file."""
    homes = {quantised.pieces["main"].name: name for name, quantised in matrices.items()}
    headers = {}
    for shard, header in checkpoint.headers.items():
        tensors = {}
        for name, stored in header.tensors.items():
            if name in homes:
                weight = homes[name]
                tensors[weight] = replace(stored, name=weight, dtype=kind, shape=matrices[weight].shape)
            elif name not in dropped:
                tensors[name] = stored
        headers[shard] = replace(header, tensors=tensors)
    return replace(checkpoint, headers=headers, config=_unquantised(checkpoint.config, dtype), sound_index=False)


def _unquantised(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """The config without what it says of few bits, at any depth; with `dtype`, if given, wherever it states one."""
    kept = {key: value for key, value in config.items() if key not in SETTINGS}
    inner = {key: _unquantised(value, dtype) for key, value in kept.items() if isinstance(value, dict)}
    stated = [key for key in ("dtype", "torch_dtype") if dtype and isinstance(kept.get(key), str)]
    return {**kept, **inner, **dict.fromkeys(stated, dtype)}


_KEEP = "Changed tensors are stored as they are there, or in float32 with --base-dtype float32."
_ORIGINAL = "Merge into the 16-bit or 32-bit original of the model."
