"""The adapter as PEFT reads it: adapter_config.json and adapter_model.safetensors.

Field names and key layout follow PEFT 0.21 (peft/utils/save_and_load.py, peft/tuners/lora/config.py); only
fields that old releases know are written, because those refuse a config with unknown keys.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.header import build_header, tensor_bytes
from .spans import create, read_span, write_span

FOLDER = "ailora_init"
OFFSET = "ailora_offset"  # a frozen adapter with -B A, where the base is the untouched original
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAGNITUDE_DTYPE = "F32"  # whatever A and B are: rounded magnitudes would scale every row from the first step on


@dataclass(frozen=True)
class AdapterModule:
    """One adapted module: path in memory, shape (out, in) of its W, rank and alpha."""

    module: str
    shape: tuple[int, int]
    rank: int
    alpha: int


def tensor_names(module: str) -> tuple[str, str]:
    """Names of A and B in the file."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def magnitude_name(module: str) -> str:
    """Name of DoRA's magnitudes in the file."""
    return f"{PREFIX}{module}.lora_magnitude_vector"


class AdapterWriter:
    """Lays the file out from the plan and fills in the factors as they come; with `dora` the magnitudes, too."""

    def __init__(
        self,
        folder: Path,
        modules: Sequence[AdapterModule],
        dtype: str,
        metadata: Mapping[str, str],
        dora: bool = False,
    ) -> None:
        self._dora = dora
        entries: list[tuple[str, str, tuple[int, ...]]] = []
        for item in modules:
            name_a, name_b = tensor_names(item.module)
            entries += [(name_a, dtype, (item.rank, item.shape[1])), (name_b, dtype, (item.shape[0], item.rank))]
            if dora:
                entries.append((magnitude_name(item.module), MAGNITUDE_DTYPE, (item.shape[0],)))
        self._itemsize = tensor_bytes(dtype, (1,))
        raw, self._header = build_header(sorted(entries), {"format": "pt", **metadata}, WEIGHTS)
        self.path = folder / WEIGHTS
        if not self.path.exists():
            create(self.path, self._header.file_size, raw)

    @property
    def nbytes(self) -> int:
        return self._header.file_size

    def read(self, module: str) -> tuple[bytes, ...]:
        """The bytes of A, B and, for DoRA, the magnitudes that are in the file."""
        spans = (self._header.tensors[name] for name in self._names(module))
        return tuple(read_span(self.path, info.start, info.stop) for info in spans)

    def read_offset(self, module: str) -> tuple[bytes, bytes]:
        """The bytes of A and of -B for those in the file: what takes this module's part out of the base again."""
        A, B = self.read(module)
        return A, negated(B, self._itemsize)

    def write(self, module: str, *parts: memoryview | bytes) -> None:
        """A (r, in), B (out, r) and, for DoRA, the magnitudes (out,) of one module, as bytes in the file's dtype."""
        for name, data in zip(self._names(module), parts, strict=True):
            write_span(self.path, self._header.tensors[name].start, data)

    def _names(self, module: str) -> tuple[str, ...]:
        return (*tensor_names(module), magnitude_name(module)) if self._dora else tensor_names(module)


def negated(data: memoryview | bytes, itemsize: int) -> bytes:
    """The same little-endian floats with the other sign, which is the highest bit of each."""
    flipped = np.frombuffer(data, np.uint8).reshape(-1, itemsize).copy()
    flipped[:, -1] ^= 0x80
    return flipped.tobytes()


def adapter_config(
    modules: Sequence[AdapterModule],
    target_modules: Sequence[str],
    *,
    base: str,
    revision: str | None,
    architectures: Sequence[str],
    rslora: bool,
    transposed: bool = False,
    dora: bool = False,
    bias: str = "none",
) -> dict[str, Any]:
    """adapter_config.json of a LoRA that starts from stored factors.

    `init_lora_weights` is true on purpose: any other tag makes loaders repeat a surgery on the base. A
    rank_pattern always comes with an alpha_pattern, because PEFT looks the two up independently. Pattern keys
    are whole, unescaped paths: old releases look them up as they are, new ones read them as expressions.
    """
    (rank, alpha), _ = Counter((item.rank, item.alpha) for item in modules).most_common(1)[0]
    odd = [item for item in modules if (item.rank, item.alpha) != (rank, alpha)]
    return {
        "alpha_pattern": {item.module: item.alpha for item in odd},
        "base_model_name_or_path": base,
        "bias": bias,
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {item.module: item.rank for item in odd},
        "revision": revision,
        "target_modules": list(target_modules),
        "task_type": _task_type(architectures),
        "use_rslora": rslora,
        **({"use_dora": True} if dora else {}),
    }


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _task_type(architectures: Sequence[str]) -> str | None:
    """Only what is certain: other task types make PEFT add or expect further parts."""
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    return "CAUSAL_LM" if causal else None
