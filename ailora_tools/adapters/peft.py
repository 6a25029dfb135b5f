"""PEFT's contract with an adapter folder: names of files and tensors, its config, and its matching rules.

Field names and key layout follow PEFT 0.21 (peft/utils/save_and_load.py, peft/tuners/lora/config.py); only
fields that old releases know are written, because those refuse a config with unknown keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .expressions import ends_in

ADAPTER_CONFIG = "adapter_config.json"


ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


PREFIX = "base_model.model."


LARGEST_SCALING = 1e6  # far beyond any in use: what is above is a damaged file or a slip


MAGNITUDE_DTYPE = "F32"  # whatever A and B are: rounded magnitudes would scale every row from the first step on


@dataclass(frozen=True)
class AdapterModule:
    """One adapted module: path in memory, shape (out, in) of its W, rank and alpha."""

    module: str
    shape: tuple[int, int]
    rank: int
    alpha: int


def scaling_of(alpha: object, rank: int, rslora: bool) -> float | None:
    """What PEFT multiplies B A with: alpha / r, with rsLoRA alpha / sqrt(r) (arXiv 2312.03732). None where alpha is no
    number, or the result not above 0 and at most `LARGEST_SCALING`: with NaN or infinity nothing computed is left."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        return None
    try:
        scaling = alpha / rank**0.5 if rslora else alpha / rank
    except OverflowError:  # whole numbers beyond float64
        return None
    return scaling if 0 < scaling <= LARGEST_SCALING else None


def tensor_names(module: str) -> tuple[str, str]:
    """Names of A and B in the file."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def token_name(module: str) -> str:
    """Path of the new rows of an embedding (`trainable_token_indices`), without PEFT's prefix."""
    return f"{module}.token_adapter.trainable_tokens_delta"


def magnitude_name(module: str) -> str:
    """Name of DoRA's magnitudes in the file."""
    return f"{PREFIX}{module}.lora_magnitude_vector"


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
    saved: Sequence[str] = (),
    tokens: Sequence[int] = (),
    group: int | None = None,
) -> dict[str, Any]:
    """adapter_config.json of a LoRA that starts from stored factors.

    `init_lora_weights` is true on purpose: any other tag makes loaders repeat a surgery on the base. A
    rank_pattern always comes with an alpha_pattern, because PEFT looks the two up independently. Pattern keys
    are whole, unescaped paths: old releases look them up as they are, new ones read them as expressions. group: of
    inputs, over whose sums A is taken (QA-LoRA).
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
        "modules_to_save": list(saved) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {item.module: item.rank for item in odd},
        "revision": revision,
        "target_modules": list(target_modules),
        "task_type": _task_type(architectures),
        "use_rslora": rslora,
        **({"trainable_token_indices": list(tokens)} if tokens else {}),
        **({"use_dora": True} if dora else {}),
        **({"use_qalora": True, "qalora_group_size": group} if group else {}),
    }


def _task_type(architectures: Sequence[str]) -> str | None:
    """Only what is certain: other task types make PEFT add or expect further parts."""
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    return "CAUSAL_LM" if causal else None


def hits(target: str, module: str) -> bool:
    """PEFT's rule for a list of target_modules: the name itself, or a path that ends in it."""
    return module == target or module.endswith("." + target)


def pattern_value(pattern: object, names: str | tuple[str, ...], default: Any) -> Any:
    """PEFT's rule for rank_pattern and alpha_pattern: the first key, an expression, that the path ends with. Where a
    module has several names, any of them may be meant.

    TargetError for an expression that cannot be matched in bounded time.
    """
    known = (names,) if isinstance(names, str) else names
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        if any(ends_in(key, name) for name in known):
            return value
    return default


def rivals(pattern: object, module: str) -> list[str]:
    """The keys that match the path, where they differ in what they say: PEFT took the first in training, and sorts them
    when it saves."""
    found = {key: value for key, value in pattern.items() if ends_in(key, module)} if isinstance(pattern, dict) else {}
    return list(found) if len(set(found.values())) > 1 else []
