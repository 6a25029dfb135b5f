"""ranks.json: a rank and an alpha per module, as `analyze --suggest-ranks` writes it and `init --ranks` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.gate import CONFIG_BYTES, parse, read_path
from ..checkpoint.header import quoted
from ..errors import CheckpointError, OptionError, listed

RANKS_FORMAT, RANKS_VERSION = "ailora-tools ranks", 1
_HINT = "Give the ranks.json that `ailora-tools analyze --suggest-ranks` wrote."


@dataclass(frozen=True)
class Ranks:
    """`rank_pattern` and `alpha_pattern` by module path; `rank` is for modules that are not listed."""

    rank: int | None
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, int]


def read_ranks(path: Path) -> Ranks:
    """Raises OptionError for a file that is not there, is not of this format, or holds anything but whole numbers."""
    try:
        body = parse(read_path(path, _HINT, limit=CONFIG_BYTES), str(path))
    except CheckpointError as error:
        raise OptionError(error.problem, _HINT) from None
    found = [body.get(key) if isinstance(body, dict) else None for key in ("format", "version")]
    if found != [RANKS_FORMAT, RANKS_VERSION]:
        raise OptionError(
            f"{path}: format and version are {quoted(found)}, expected {[RANKS_FORMAT, RANKS_VERSION]}.", _HINT
        )
    rank = body.get("rank")
    wrong = [] if rank is None or _positive(rank) else [f"rank is {quoted(rank)}"]
    patterns = [_pattern(body.get(key, {}), key, wrong) for key in ("rank_pattern", "alpha_pattern")]
    wrong += [
        f"alpha_pattern names {module}, rank_pattern does not" for module in patterns[1] if module not in patterns[0]
    ]
    if wrong:
        raise OptionError(f"{path}: {listed(wrong)}; whole numbers from 1 are expected.", _HINT)
    return Ranks(rank, patterns[0], patterns[1])


def _pattern(value: Any, key: str, wrong: list[str]) -> dict[str, int]:
    if not isinstance(value, dict):
        wrong.append(f"{key} is no object")
        return {}
    wrong += [
        f"{key} of {module[:200]} is {quoted(number)}" for module, number in value.items() if not _positive(number)
    ]
    return value


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 31
