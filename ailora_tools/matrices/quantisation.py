"""Matrices that are stored in few bits: which tensors together are one, in which published format. Pure.

What the pieces mean is in `dequantise`; a format that is not in the table is never read, nor a piece in a dtype whose
meaning is not certain.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.gate import CONFIG_BYTES, parse
from ..checkpoint.header import FLOATS, StoredTensor, quoted
from ..checkpoint.index import Checkpoint
from ..errors import TargetError


@dataclass(frozen=True)
class Format:
    """How a matrix `NAME.weight` is stored: `main` and `beside` are what stands after NAME.

    dtypes: of the main tensor. beside: what a piece is -> its possible suffixes; `maybe` likewise, for pieces that
    need not be there. methods: values of quant_method in config.json; none: the names say enough. exponents: whether
    scales may be exponents, of OCP MX.
    """

    name: str
    label: str
    main: str
    dtypes: tuple[str, ...]
    beside: Mapping[str, tuple[str, ...]]
    maybe: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    exponents: bool = False


_STATE = ".weight.quant_state.bitsandbytes__"
FORMATS = (
    Format(
        "fp8", "", ".weight", ("F8_E4M3", "F8_E5M2"), {"scale": (".weight_scale_inv", ".weight_scale", ".scale")},
        exponents=True,
    ),
    Format(
        "bnb_4bit", "NF4 or FP4 (bitsandbytes)", ".weight", ("U8",),
        {"absmax": (".weight.absmax",), "code": (".weight.quant_map",), "state": (f"{_STATE}nf4", f"{_STATE}fp4")},
        {"nested_absmax": (".weight.nested_absmax",), "nested_code": (".weight.nested_quant_map",)},
    ),
    Format("bnb_int8", "INT8 (bitsandbytes)", ".weight", ("I8",), {"scale": (".SCB",)}),
    Format(
        "int8", "INT8 (compressed-tensors)", ".weight", ("I8",), {"scale": (".weight_scale",)},
        {"zeros": (".weight_zero_point",), "groups": (".weight_g_idx",)},
    ),
    Format(
        "gptq", "INT (GPTQ)", ".qweight", ("I32",), {"zeros": (".qzeros",), "scale": (".scales",)},
        {"groups": (".g_idx",)}, ("gptq",),
    ),
    Format("awq", "INT4 (AWQ)", ".qweight", ("I32",), {"zeros": (".qzeros",), "scale": (".scales",)}, {}, ("awq",)),
    Format(
        "packed", "INT (compressed-tensors)", ".weight_packed", ("I32",),
        {"scale": (".weight_scale",), "shape": (".weight_shape",)},
        {"zeros": (".weight_zero_point",), "groups": (".weight_g_idx",)},
    ),
    Format(
        "nvfp4", "NVFP4 (compressed-tensors)", ".weight_packed", ("U8",),
        {"scale": (".weight_scale",), "global": (".weight_global_scale",)},
    ),
    Format(
        "mxfp4", "MXFP4 (compressed-tensors)", ".weight_packed", ("U8",), {"scale": (".weight_scale",)},
        methods=("compressed-tensors",),
    ),
    Format("mlx", "INT (MLX)", ".weight", ("U32",), {"scale": (".scales",), "biases": (".biases",)}),
)  # fmt: skip
EXPONENT = "F8_E8M0"
_WORDS = ("I32",)
# The dtypes in which a piece means what `dequantise` takes it for; "zeros" of int8 are plain numbers, packed elsewhere.
_MEANT: Mapping[str, tuple[str, ...]] = {
    "scale": FLOATS, "code": FLOATS, "nested_absmax": FLOATS, "nested_code": FLOATS, "absmax": (*FLOATS, "U8"),
    "state": ("U8",), "shape": ("I64",), "groups": ("I32", "I64"), "zeros": _WORDS, "global": FLOATS,
    "biases": FLOATS,
}  # fmt: skip
_NUMBERS = (*FLOATS, "I8", "U8", "I32", "I64")
_MARKS = ("e8m0", "mxfp8")  # in quant_method, quant_algo, fmt, format, scale_fmt or scale_format
_TOLD = {("quant_method", "fp8"), ("scale_dtype", "torch.uint8"), ("scale_dtype", "uint8")}
_FACTORS = (
    ".weight_scale_inv",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_global_scale",
    ".weight_zero_point",
    ".scale",
    ".scales",
    ".scale_inv",
    ".SCB",
    ".weight.SCB",
    ".weight.absmax",
    ".qzeros",
    ".zeros",
    ".zero_point",
    ".biases",
    ".weight_scale_scale",
    ".weight_offset",
)
SETTINGS = ("quantization_config", "compression_config", "quantization")  # keys of config.json
BARE = ".in_proj_weight"  # of torch.nn.MultiheadAttention
MAINS = tuple(sorted({row.main for row in FORMATS} - {".weight"}))


@dataclass(frozen=True)
class Quantised:
    """One matrix in few bits: its pieces by what they are ("main", "scale", ...) and its shape (out, in).

    settings: `quantization_config` of config.json, with what the matrix itself states on top.
    """

    format: Format
    pieces: Mapping[str, StoredTensor]
    shape: tuple[int, int]
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Such as "NF4 or FP4 (bitsandbytes)"; for 8-bit floats their dtype."""
        return self.format.label or self.pieces["main"].dtype


def logical_name(tensor: str) -> str:
    """NAME.qweight and NAME.weight_packed as NAME.weight; a parameter without a module, as if it were one."""
    if tensor.endswith(BARE):
        return f"{tensor}.weight"
    main = next((main for main in MAINS if tensor.endswith(main)), None)
    return tensor if main is None else f"{tensor.removesuffix(main)}.weight"


def find_quantised(checkpoint: Checkpoint, tensor: str) -> Quantised | None:
    """The matrix whose main tensor is `tensor`; None if it is not quantised, or in no known format.

    Raises TargetError where the names are those of a known format and what the pieces mean is not certain.
    """
    for row in FORMATS:
        pieces = _pieces(checkpoint, row, tensor)
        if pieces is not None:
            _require_meaning(checkpoint, row, pieces)
            return _described(checkpoint, row, pieces)
    _require_whole(checkpoint, checkpoint.tensors[tensor])
    return None


def _require_whole(checkpoint: Checkpoint, stored: StoredTensor) -> None:
    """A float weight with a scale beside it may be multiplied by it already, or not: neither is taken for granted."""
    stem = stored.name.removesuffix(".weight")
    beside = [name for name in _siblings(checkpoint, stem) if name.startswith(f"{stem}.weight_")]
    if beside and stem != stored.name and stored.dtype in FLOATS:
        raise TargetError(
            f"{stored.name} is stored as {stored.dtype}, and beside it lies {beside[0]}: whether the one is multiplied "
            "by the other already is not known.",
            _ORIGINAL,
        )


def _require_meaning(checkpoint: Checkpoint, row: Format, pieces: Mapping[str, StoredTensor]) -> None:
    """Every piece in a dtype that says how to read it, and no second scale or zero point beside them."""
    main = pieces["main"]
    for what, piece in pieces.items():
        if what != "main" and piece.dtype not in _readable(checkpoint, row, what, pieces):
            raise TargetError(
                f"{piece.name} is stored as {piece.dtype}: what it means beside {main.name} [{main.dtype}] is not "
                "certain.",
                _SAY_SO if row.exponents and piece.dtype == "U8" else _ORIGINAL,
            )
    stem, known = main.name.removesuffix(row.main), {piece.name for piece in pieces.values()}
    strange = [name for name in _siblings(checkpoint, stem) if name not in known]
    if strange:
        raise TargetError(
            f"{strange[0]} lies beside {main.name} [{row.label or main.dtype}]: what it means there is not known.",
            _ORIGINAL,
        )


def _readable(checkpoint: Checkpoint, row: Format, what: str, pieces: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    match what:
        case "scale" if row.exponents:
            return (*FLOATS, EXPONENT, *(("U8",) if says_exponents(checkpoint.config) else ()))
        case "scale" if row.name == "nvfp4":
            return ("F8_E4M3",)
        case "scale" if row.name == "mxfp4":
            told = any("mxfp4" in text.lower() for _, text in _texts(quantization_config(checkpoint.config)))
            return (EXPONENT, *(("U8",) if told else ()))
        case "zeros" if row.name == "int8":
            return _NUMBERS
        case "absmax":
            return ("U8",) if "nested_absmax" in pieces else FLOATS
    return _MEANT[what]


def _siblings(checkpoint: Checkpoint, stem: str) -> list[str]:
    """Scales and zero points of one weight, by all names that formats have for them; not those of activations."""
    return [stem + suffix for suffix in _FACTORS if stem + suffix in checkpoint.tensors]


def says_exponents(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that U8 scales are exponents, E8M0 under another name: by a mark in one of its texts,
    compressed-tensors' scale_dtype, or the method of transformers, which reads them so (integrations/finegrained_fp8).
    """
    told = list(_texts(quantization_config(config)))
    return any(mark in text.lower() for _, text in told for mark in _MARKS) or not _TOLD.isdisjoint(told)


def _texts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every setting that is a text, with its key, at any depth; lists name modules and say nothing."""
    for key, value in settings.items():
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            yield from _texts(value)


def _pieces(checkpoint: Checkpoint, row: Format, tensor: str) -> dict[str, StoredTensor] | None:
    stored = checkpoint.tensors[tensor]
    method = quantization_config(checkpoint.config).get("quant_method")
    if not tensor.endswith(row.main) or stored.dtype not in row.dtypes or (row.methods and method not in row.methods):
        return None
    stem, found = tensor.removesuffix(row.main), {"main": stored}
    for what, suffixes in [*row.beside.items(), *row.maybe.items()]:
        name = next((stem + suffix for suffix in suffixes if stem + suffix in checkpoint.tensors), None)
        if name is not None:
            found[what] = checkpoint.tensors[name]
    return found if row.beside.keys() <= found.keys() and len(stored.shape) == 2 else None


def quantization_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that config.json states, for the model or for its text part; empty if there are none. MLX states
    them as `quantization`, most often beside a copy under the other name."""
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in SETTINGS:
            if isinstance(found := holder.get(key), dict):
                return found
    return {}


def _described(checkpoint: Checkpoint, row: Format, pieces: dict[str, StoredTensor]) -> Quantised:
    """Shape and settings, some of which only the bytes of small pieces tell."""
    settings = {**quantization_config(checkpoint.config), **_scheme(checkpoint.config)}
    rows, columns = pieces["main"].shape
    try:
        match row.name:
            case "bnb_4bit":
                settings |= parse(_bytes(checkpoint, pieces["state"]), checkpoint.files.where(pieces["state"].file))
                shape = settings["shape"]
            case "gptq":
                shape = (columns, rows * 32 // int(settings["bits"]))
            case "awq":
                shape = (rows, columns * 32 // int(settings.get("bits", 4)))[::-1]
            case "nvfp4" | "mxfp4":
                shape = (rows, 2 * columns)
            case "mlx":
                settings |= _of_module(settings, pieces["main"].name.removesuffix(".weight"))
                shape = (rows, columns * 32 // int(settings["bits"]))
            case "packed":
                shape = struct.unpack("<2q", _bytes(checkpoint, pieces["shape"]))
            case _:
                shape = (rows, columns)
        high, wide = (int(side) for side in shape)
        if min(high, wide) < 0 or high * wide > 4 * pieces["main"].nbytes:  # no format has less than two bits an entry
            raise ValueError(f"{quoted(shape)} does not fit {pieces['main'].nbytes:,} bytes")
    except (KeyError, ValueError, TypeError, ArithmeticError, struct.error) as error:
        raise TargetError(
            f"{pieces['main'].name}: looks like {row.label}, but does not say its shape ({error}).",
            _ORIGINAL,
        ) from None
    return Quantised(row, pieces, (high, wide), settings)


def _of_module(settings: Mapping[str, Any], module: str) -> dict[str, Any]:
    """What MLX's settings say of one module alone, by its path."""
    own = settings.get(module, {})
    if not isinstance(own, dict):
        raise ValueError(f"{module} is {quoted(own)} in its settings")
    return own


def _bytes(checkpoint: Checkpoint, piece: StoredTensor) -> bytes:
    if piece.nbytes > CONFIG_BYTES:
        raise ValueError(f"{piece.name} has {piece.nbytes:,} bytes")
    return bytes(checkpoint.files.read(piece.file, piece.start, piece.stop))


_SAY_SO = (
    'If the scales are exponents (MXFP8, 2^(s - 127)), say so in config.json: "scale_fmt": "ue8m0" in '
    "quantization_config. Else start from the 16-bit or 32-bit original of the model."
)
_ORIGINAL = "Start from the 16-bit or 32-bit original of the model."


def _scheme(config: Mapping[str, Any]) -> dict[str, Any]:
    """What compressed-tensors states about weights; of several groups, the first."""
    groups = quantization_config(config).get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            return {"bits": weights.get("num_bits"), "group_size": weights.get("group_size"),
                    "block": weights.get("block_structure")}  # fmt: skip
    return {}
