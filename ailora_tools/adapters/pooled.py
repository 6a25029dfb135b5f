"""QA-LoRA (arXiv 2309.14717) as the plain LoRA that it is: A reads sums over groups of inputs, which W could read too.

PEFT 0.21 (tuners/lora/variants.py, QALoraLinearVariant) computes s (in/g) B A mean_g(x) with A (r, in/g), that is
s (in/g^2) B A' x, where A' (r, in) has each column of A g times. The authors' code has other factors than in/g^2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import Files
from ..checkpoint.gate import INDEX_BYTES, read_json
from ..checkpoint.header import FLOATS, StoredTensor, quoted
from ..checkpoint.index import read_header
from ..errors import CheckpointError, TargetError
from .peft import ADAPTER_CONFIG, ADAPTER_FILES, ADAPTER_WEIGHTS
from .translated import Entry, TranslatedFiles

if TYPE_CHECKING:
    from torch import Tensor

    from .folder import Adapter

SWITCH, GROUP = "use_qalora", "qalora_group_size"
_USUAL = 16  # PEFT's default


def as_plain(files: Files) -> Files:
    """`files`, or where PEFT's config says QA-LoRA, the plain LoRA of the same rank that computes the same.

    The group size stays in the config, as a word on where A comes from. CheckpointError for one that is no number.
    """
    if not {*ADAPTER_FILES} <= {*files.names()}:
        return files
    config = read_json(files, ADAPTER_CONFIG, INDEX_BYTES)
    if not config.get(SWITCH):
        return files
    group = config.get(GROUP, _USUAL)
    if isinstance(group, bool) or not isinstance(group, int) or not 1 <= group <= 1 << 16:
        raise CheckpointError(
            f"{files.where(ADAPTER_CONFIG)}: {GROUP} is {quoted(group)}, not a number of inputs.",
            "Save the adapter again, or correct the field.",
        )
    if config.get("use_dora"):
        raise TargetError(
            f"{files.where(ADAPTER_CONFIG)}: use_dora and {SWITCH} are both set, which PEFT knows no layer for.",
            "Set the one that the adapter was trained with.",
        )
    plain = {**{key: value for key, value in config.items() if key != SWITCH}, GROUP: group}
    return TranslatedFiles(files, plain, _entries(files, group), {name: name for name in ADAPTER_FILES})


def _entries(files: Files, group: int) -> Iterator[Entry]:
    from ..checkpoint.stream import load_matrix, matrix_bytes

    for name, stored in read_header(files, ADAPTER_WEIGHTS).tensors.items():
        if _is_pooled(name, stored):
            A = unpooled(load_matrix(files, stored), group)
            yield name, "F32", tuple(A.shape), matrix_bytes(A)
        else:
            yield name, stored.dtype, stored.shape, files.read(stored.file, stored.start, stored.stop)


def _is_pooled(name: str, stored: StoredTensor) -> bool:
    return ".lora_A." in name and len(stored.shape) == 2 and stored.dtype in FLOATS


def unpooled(A: Tensor, group: int) -> Tensor:
    """A' (r, in), float32, with B A' x what PEFT computes from A (r, in/g), whatever the scaling."""
    whole = A.float().repeat_interleave(group, 1)
    return whole * (A.shape[1] / group)  # in / g^2


def sums_over_groups(adapter: Adapter) -> bool:
    """Whether every A has one column for all inputs of a group, as of QA-LoRA, also where it was converted."""
    group, factors = adapter.config.get(GROUP), adapter.modules.values()
    if not isinstance(group, int) or group < 2 or not factors:
        return False
    return all(is_constant(adapter.load(one.A), group) for one in factors)


def is_constant(A: Tensor, group: int) -> bool:
    """Whether A (r, in) has one column for all inputs of a group."""
    if A.shape[1] % group:
        return False
    groups = A.reshape(len(A), -1, group)
    return bool((groups == groups[:, :, :1]).all())


def about_group(config: Mapping[str, Any], found: tuple[int, ...], sides: tuple[int, ...]) -> str:
    """Why shapes may differ where A was pooled: PEFT pools on the layers of GPTQModel alone, and says it of all."""
    group = config.get(GROUP)
    if not isinstance(group, int) or sorted(sides) == sorted(found) or sides[1] != group * found[1]:
        return ""
    return (
        f" (PEFT ignores {SWITCH} on any layer but those of GPTQModel, and leaves it in the config: this A is whole; "
        f"take {SWITCH} out of {ADAPTER_CONFIG})"
    )
