"""How many attention heads a config.json states: one table for fused layouts, `analyze --heads` and exports. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint.gate import MOST_HEADS
from ..checkpoint.header import quoted

_QUERIES = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
_KEYS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "n_head_kv")
# Types whose classes take `multi_query` as true where config.json does not state it.
_MULTI_QUERY = ("falcon", "gpt_bigcode")


def head_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of query heads and of key-value heads; as many of both where config.json names no second one.

    Raises KeyError where the number of query heads is missing, ValueError where a number is no positive integer.
    """
    queries = _stated(config, _QUERIES)
    if not queries:
        raise KeyError(_QUERIES[0])
    return queries, _key_value(config, queries)


def _key_value(config: Mapping[str, Any], queries: int) -> int:
    """A number counts only where the class reads it: Falcon's config.json states one that multi_query overrides."""
    if config.get("kv_lora_rank"):  # latent attention: each head has its own keys and values
        return queries
    if config.get("model_type") in _MULTI_QUERY and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else queries
    if config.get("model_type") == "chatglm":
        return _stated(config, ("multi_query_group_num",)) or 1 if config.get("multi_query_attention") else queries
    nested = config.get("attn_config")  # DBRX
    stated = _stated(nested, _KEYS) if isinstance(nested, Mapping) else 0
    return stated or _stated(config, _KEYS) or (1 if config.get("multi_query") is True else queries)


def _stated(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """The first of these numbers that config.json has; 0 if it has none."""
    name = next((name for name in names if config.get(name) is not None), None)
    if name is None:
        return 0
    return whole(config[name], name)


def whole(value: object, name: str) -> int:
    """A number of heads or of their rows as config.json states it; ValueError with `name` if it can be none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_HEADS:
        raise ValueError(f"{name} is {quoted(value)}, not a positive integer up to {MOST_HEADS:,}")
    return value
