"""Matrices that hold more than the projection they are called after, such as gates beside the queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import TargetError
from ..matrices.heads import head_counts, whole
from ..matrices.text_config import text_config
from ..methods import symbol
from .multimodal import OTHER_TOWERS
from .projections import Target
from .recognition import Known


def require_sizes(known: Known, config: Mapping[str, Any], targets: Iterable[Target]) -> None:
    """TargetError for a matrix with more rows than the heads of config.json make, unless a row of the table tells what
    the others are. Other towers have heads of their own; they are told by their names or by the width they read."""
    if known.sizes_are_certain:
        return
    text = text_config(config)
    expected = {"q": _rows_of_q(text), "v": _rows_of_v(text)}
    for target in targets:
        rows = expected.get(target.role)
        found, width = target.shape
        of_text = width == text.get("hidden_size") and not OTHER_TOWERS.search(target.tensor)
        if rows and target.part is None and of_text and found > rows:
            raise TargetError(
                f"{target.tensor} has {found} rows, but the heads that config.json states make {rows}: it holds more "
                f"than {symbol(target.role)}, such as a gate, and which rows those are is not known for model type "
                f"{known.kind or 'not stated'}.",
                "--q-tensor and --v-tensor are not enough, since they take all rows of a tensor. The table needs a row "
                "for such models (examples/guide/models.md, Adding an architecture).",
            )


def _rows_of_q(config: Mapping[str, Any]) -> int:
    """Heads times their size, which is the model's width divided by them if not stated; 0 if neither is known."""
    try:
        queries, _ = head_counts(config)
        stated = _stated(config, "qk_head_dim", "head_dim")
        return queries * (stated or whole(config["hidden_size"], "hidden_size") // queries)
    except (KeyError, ValueError):
        return 0


def _rows_of_v(config: Mapping[str, Any]) -> int:
    """Heads times their size, where config.json states it."""
    try:
        return head_counts(config)[1] * _stated(config, "v_head_dim", "head_dim")
    except (KeyError, ValueError):
        return 0


def _stated(config: Mapping[str, Any], *names: str) -> int:
    return next((whole(config[name], name) for name in names if config.get(name)), 0)
