"""The part of a config.json that describes the text model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where multimodal configs keep it: transformers' own name, then those of code that comes with models; Qwen-Omni keeps
# it inside that of its thinker.
_NESTED = ("thinker_config", "text_config", "llm_config", "language_config")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The innermost nested text config, the whole config.json where there is none."""
    while inner := next((config[name] for name in _NESTED if isinstance(config.get(name), Mapping)), None):
        config = inner
    return config
