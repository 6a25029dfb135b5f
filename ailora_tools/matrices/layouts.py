"""Which lines of a fused tensor are one projection: contiguous, per head, per group, in blocks. Pure.

Every layout is a pattern of widths that repeats: [q q q k v] for a group of three queries, three times side by side
for three groups. A line is a row of a Linear's weight (out, in), a column of a Conv1D's (in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import TargetError
from .heads import head_counts, whole

Runs = tuple[tuple[int, int], ...]
Pattern = tuple[int, list[tuple[str, int]]]  # how often which sequence of (role, lines) repeats
_ANY = "all of it"  # in a pattern: one matrix, whatever its role


@dataclass(frozen=True)
class Part:
    """The lines [start, stop) of a stored matrix that together, in order, are one projection."""

    runs: Runs
    transposed: bool = False  # a Conv1D, stored (in, out)

    @property
    def lines(self) -> int:
        return sum(stop - start for start, stop in self.runs)


@dataclass(frozen=True)
class Layout:
    """How a fused tensor is put together. `widths` gives, from config, number of lines and layer, how often which
    sequence of (role, lines) repeats; `proven` tells whether a test holds it against a running model."""

    text: str
    widths: Callable[[Mapping[str, Any], int, int], Pattern]
    transposed: bool = False
    proven: bool = True

    @property
    def single(self) -> bool:
        """Whether all lines are one matrix, whatever its role."""
        return self.widths is _all_of_it

    def part(self, config: Mapping[str, Any], role: str, lines: int, layer: int, tensor: str) -> Part:
        """The lines of one role; TargetError if config.json does not fit the shape of the tensor."""
        try:
            count, pattern = self.widths(config, lines, layer)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise TargetError(
                f"{tensor}: config.json does not tell its layout, {self.text} ({type(error).__name__}: {error}).",
                "Restore the config.json of the model.",
            ) from None
        fits = min(width for _, width in pattern) >= 0 and count * sum(width for _, width in pattern) == lines
        runs = _runs(count, pattern, role) if fits else ()  # a config.json may state any number of repetitions
        if not runs:
            shown = " | ".join(f"{name} {width}" for name, width in pattern)
            raise TargetError(
                f"{tensor}: {lines} lines, but config.json makes it {count} times [{shown}] ({self.text}).",
                "The config.json belongs to another model, or this variant of the architecture is not known yet.",
            )
        return Part(runs, self.transposed)


def _runs(count: int, pattern: Sequence[tuple[str, int]], role: str) -> Runs:
    """Where `role` lies in `count` repetitions; runs that touch are one."""
    runs: list[tuple[int, int]] = []
    start = 0
    for _ in range(count):
        for name, width in pattern:
            if name in (role, _ANY) and width:
                touching = runs and runs[-1][1] == start
                runs = [*runs[:-1], (runs[-1][0], start + width)] if touching else [*runs, (start, start + width)]
            start += width
    return tuple(runs)


def _side_by_side(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    return _three_blocks(*head_counts(config), lines)


def _three_blocks(queries: int, keys: int, lines: int) -> Pattern:
    head = lines // (queries + 2 * keys)
    return 1, [("q", queries * head), ("k", keys * head), ("v", keys * head)]


def _thirds(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    return 1, [(role, lines // 3) for role in "qkv"]


def _per_head(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    queries, _ = head_counts(config)
    return queries, [(role, lines // (3 * queries)) for role in "qkv"]


def _per_group(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    queries, keys = head_counts(config)
    head = lines // (queries + 2 * keys)
    return keys, [("q", queries // keys * head), ("k", head), ("v", head)]


def _falcon(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    if config.get("new_decoder_architecture"):
        return _per_group(config, lines, layer)
    return _one_key_or_per_head({**config, "model_type": "falcon"}, lines, layer)


def _bigcode(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    return _one_key_or_per_head({**config, "model_type": "gpt_bigcode"}, lines, layer)


def _one_key_or_per_head(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    shared = head_counts(config)[1] == 1
    return _side_by_side(config, lines, layer) if shared else _per_head(config, lines, layer)


def _chatglm(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    config = {**config, "model_type": "chatglm"}
    grouped = config.get("multi_query_attention")
    return _side_by_side(config, lines, layer) if grouped else _per_head(config, lines, layer)


def _all_of_it(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    return 1, [(_ANY, lines)]


def _gate_and_up(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    return 1, [(role, lines // 2) for role in ("gate", "up")]


def _openelm(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    queries, keys = (whole(config[name][layer], name) for name in ("num_query_heads", "num_kv_heads"))
    return _three_blocks(queries, keys, lines)


def _codegen(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    return 4, [(role, lines // 12) for role in "qvk"]


def _gate(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    queries, _ = head_counts(config)
    head = whole(config["head_dim"], "head_dim") if config.get("head_dim") else lines // (2 * queries)
    return queries, [("q", head), ("gate of the output", head)]


def _latent(config: Mapping[str, Any], lines: int, layer: int) -> Pattern:
    queries, _ = head_counts(config)
    return queries, [
        (role, whole(config[name], name)) for role, name in (("k", "qk_nope_head_dim"), ("v", "v_head_dim"))
    ]


SIDE_BY_SIDE = Layout("[Q | K | V]", _side_by_side)
THIRDS = Layout("[Q | K | V], three equal parts", _thirds)
COLUMNS = Layout("[Q | K | V] in columns", _thirds, transposed=True)
ONE_IN_COLUMNS = Layout("one matrix in columns", _all_of_it, transposed=True)
GATE_AND_UP = Layout("[gate | up]", _gate_and_up)
PER_HEAD = Layout("[q | k | v] head by head", _per_head)
FALCON = Layout("[queries | k | v] by group, [Q | k | v], or head by head", _falcon)
BIGCODE = Layout("[Q | k | v], or head by head", _bigcode)
CODEGEN = Layout("four blocks of [q | v | k]", _codegen)
GATE = Layout("[query | gate] head by head", _gate)
LATENT = Layout("[k | v] head by head, behind the latent", _latent)
# Read in code that cannot be run here: most of it comes with the models.
GROUP_UNPROVEN = Layout("[queries | k | v] group by group", _per_group, proven=False)
THIRDS_UNPROVEN = Layout("[Q | K | V], three equal parts", _thirds, proven=False)
COLUMNS_UNPROVEN = Layout("[Q | K | V] in columns", _thirds, transposed=True, proven=False)
CHATGLM = Layout("[Q | K | V], or head by head", _chatglm, proven=False)
GATE_AND_UP_UNPROVEN = Layout("[gate | up]", _gate_and_up, proven=False)
OPENELM = Layout("[Q | K | V], heads by layer", _openelm, proven=False)
