"""Everything that no LoRA of linear layers holds: norms, biases, embeddings, heads. What of it changed is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..checkpoint.header import DTYPE_BITS, StoredTensor
from ..checkpoint.index import Checkpoint
from ..targets.module_names import parameter_paths
from ..targets.recognition import known
from ..targets.ties import tied_parameters
from .pairs import Pairs

_ENTRIES = 1 << 22  # that are compared at a time


@dataclass(frozen=True)
class Beyond:
    """A tensor that keeps BASE with the LoRA from being TUNED. why: "changed" (`change` is norm(W1 - W0) / norm(W0)),
    "another shape", "only in the base" or "only in the fine-tune"."""

    tensor: str
    why: str
    change: float | None = None


@dataclass(frozen=True)
class Rest:
    """`same` are tensors to be compared, of the base and of the fine-tune; `told`, what the headers tell already."""

    same: tuple[tuple[StoredTensor, StoredTensor], ...]
    told: tuple[Beyond, ...]

    @property
    def reads(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """(file, bytes) of both sides."""
        sides = zip(*self.same, strict=True) if self.same else ((), ())
        one, other = ([(stored.file, stored.nbytes) for stored in side] for side in sides)
        return one, other


def find_rest(pairs: Pairs) -> Rest:
    """By path in memory, without the prefix that only models with a head have."""
    base, tuned = (_by_path(one, left) for one, left in zip((pairs.base, pairs.tuned), pairs.taken, strict=True))
    shared = [(stored, tuned[path]) for path, stored in base.items() if path in tuned]
    told = [
        *(Beyond(stored.name, "only in the base") for path, stored in base.items() if path not in tuned),
        *(Beyond(stored.name, "only in the fine-tune") for path, stored in tuned.items() if path not in base),
        *(Beyond(one.name, "another shape") for one, other in shared if one.shape != other.shape),
    ]
    return Rest(tuple(pair for pair in shared if pair[0].shape == pair[1].shape), tuple(told))


def _by_path(checkpoint: Checkpoint, taken: set[str]) -> dict[str, StoredTensor]:
    """Also for parameters that share a tensor of the file."""
    base = known(checkpoint).base
    paths = {name: path for name, path in parameter_paths(checkpoint).items() if name not in taken}
    found = {path: checkpoint.tensors[name] for name, path in paths.items()}
    for group in tied_parameters(checkpoint):
        if group.source in paths:
            found |= {name: checkpoint.tensors[group.source] for name in group.others if name not in found}
    return {path.removeprefix(f"{base}.") if base else path: stored for path, stored in found.items()}


def compare(rest: Rest, pairs: Pairs) -> Iterator[tuple[str, int, Beyond | None]]:
    """Name, bytes and what is different of each tensor, one after the other and block by block."""
    for one, other in rest.same:
        yield one.name, one.nbytes, _changed(one, other, pairs)


def _changed(one: StoredTensor, other: StoredTensor, pairs: Pairs) -> Beyond | None:
    from ..checkpoint.tensors import DTYPES, load_matrix
    from ..linalg.scale import norm
    from .factors import alike

    sides, apart, size, same = (pairs.base.files, pairs.tuned.files), 0.0, 0.0, True
    for parts in zip(_blocks(one), _blocks(other), strict=True):
        if not {part.dtype for part in parts} <= DTYPES.keys():
            raw = [files.read(part.file, part.start, part.stop) for files, part in zip(sides, parts, strict=True)]
            if raw[0] != raw[1]:
                return Beyond(one.name, "changed")
            continue
        W0, W1 = (load_matrix(files, part) for files, part in zip(sides, parts, strict=True))
        same = same and alike(W0, W1)
        apart, size = apart + norm(W1.double() - W0.double()) ** 2, size + norm(W0) ** 2
    return None if same else Beyond(one.name, "changed", (apart / size) ** 0.5 if size else None)


def _blocks(stored: StoredTensor) -> Iterator[StoredTensor]:
    """The tensor in flat pieces."""
    bits = DTYPE_BITS[stored.dtype]
    step = _ENTRIES * bits // 8
    for start in range(stored.start, stored.stop, step):
        stop = min(start + step, stored.stop)
        yield replace(stored, start=start, stop=stop, shape=((stop - start) * 8 // bits,))
