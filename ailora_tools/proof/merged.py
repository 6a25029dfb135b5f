"""Checks of a merged model: its tensors, its config, and that it is the base with the adapter in it, no more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..checkpoint.files import Files
from ..checkpoint.header import FLOATS, quoted
from ..checkpoint.index import Checkpoint
from ..errors import listed
from ..output.names import CARD, RESULT
from .companions import same_bytes
from .folder import Check, loadable
from .merged_matrix import Found
from .paired import Pair, Paired

_BITS = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}  # of a mantissa
_KEPT = 0.9  # of the change: where rounding left less, that is told
# Settings that saving changes and the model does not depend on; what is tied has a check of its own.
_VOLATILE = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "pad_token_id",
             "bos_token_id", "eos_token_id", "tie_word_embeddings", "quantization_config", "compression_config",
             "torchscript", "output_attentions", "output_hidden_states", "return_dict")  # fmt: skip


def check_tensors(paired: Paired, base: Checkpoint, merged: Checkpoint) -> Check:
    """Every parameter of the base is there under one of its names, or shares the tensor of another; none was added."""
    faults = []
    if paired.lost:
        heads = [name for name in paired.lost if name.startswith(("lm_head", "embed_out"))]
        why = ", the output layer, which is not tied" if heads else ""
        faults.append(f"{listed(paired.lost)} missing{why}")
    faults += [f"{listed(paired.strange)} not in the base"] if paired.strange else []
    faults += _ties(base, merged)
    told = f"{len(paired.pairs)} tensors, each from one of the base"
    told += f"; shared with another, as tied: {listed(paired.tied)}" if paired.tied else ""
    told += f"; built by no class, and left out: {listed(paired.unbuilt)}" if paired.unbuilt else ""
    return Check("tensors", not faults, "; ".join(faults) or told)


def _ties(base: Checkpoint, merged: Checkpoint) -> Iterator[str]:
    before, after = (one.config.get("tie_word_embeddings") for one in (base, merged))
    if before is False and after is True:
        yield "tie_word_embeddings became true: loaders would leave out the output layer"


def check_dtypes(pairs: Sequence[Pair]) -> Check:
    """No tensor is stored in another number type than its like: narrower ones are the whole model's, or a mistake."""
    kinds = [(pair.source.place.stored.dtype, pair.here.dtype, pair.name) for pair in pairs]
    narrowed = [(old, new, name) for old, new, name in kinds if _is_narrower(new, old)]
    counts = Counter(old for old, _, _ in kinds)
    lower = Counter(old for old, _, _ in narrowed)
    odd = [f"{name} is {new}, in the base {old}" for old, new, name in narrowed if 2 * lower[old] <= counts[old]]
    most = Counter((old, new) for old, new, _ in kinds if old != new).most_common(3)
    told = "; ".join(f"{count} of {old} stored as {new}" for (old, new), count in most)
    return Check("number types", not odd, listed(odd) or told or "those of the base")


def _is_narrower(new: str, old: str) -> bool:
    return new in FLOATS and old in FLOATS and _BITS[new] < _BITS[old]


def check_config(base: Checkpoint, merged: Checkpoint) -> Check:
    """Every setting that both configs state has one value, but for those that say how the model was saved."""
    faults = list(_differing(base.config, merged.config, ""))
    return Check("config", not faults, listed(faults) or "says of the model what the base's says")


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[str]:
    for name in sorted(old.keys() & new.keys() - set(_VOLATILE)):
        before, after = old[name], new[name]
        if name.startswith("_"):  # transformers' own notes
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differing(before, after, f"{path}{name}.")
        elif before is not None and json.dumps(_number(before)) != json.dumps(_number(after)):
            yield f"{path}{name} is {quoted(after)}, in the base {quoted(before)}"


def _number(value: Any) -> Any:
    """10000 and 10000.0 are one number; true is none."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else value


def check_copied(base: Files, merged: Files, names: Iterable[str]) -> Check:
    """Of a merge by this tool: the files beside the weights have the base's bytes."""
    both = sorted(set(names) & set(merged.names()))
    wrong = [name for name in both if not same_bytes(merged, _whole(merged, name), base, _whole(base, name))]
    return Check("companions", not wrong, f"{listed(wrong)} changed" if wrong else f"{len(both)} files are the base's")


def _whole(files: Files, name: str) -> tuple[str, int, int]:
    return name, 0, files.size(name)


def check_listed(files: Files, told: Mapping[str, Any]) -> Check:
    """Every file that was written is there, and none that a loader would take was added."""
    named = list(told.get("files", ()))
    here = set(files.names())
    missing = [name for name in named if name not in here]
    added = sorted(name for name in here - {*named, RESULT, CARD} if loadable(name) and "/" not in name)
    faults = [f"{listed(missing)} missing"] if missing else []
    faults += [f"{listed(added)} not among those that were written"] if added else []
    return Check("files", not faults, "; ".join(faults) or f"all {len(named)} that were written")


def check_matrices(found: Sequence[Found]) -> Check:
    """Every tensor that the adapter is for is W + s B A, rounded."""
    looked = [one for one in found if one.touched]
    wrong = _by_fault(looked)
    if wrong:
        return Check("merged", False, f"{sum(bool(one.fault) for one in looked)} of {len(looked)} do not hold: {wrong}")
    if not looked:
        return Check("merged", False, "the adapter changes no tensor")
    worst = max(one.excess or 0.0 for one in looked)
    told = f"{len(looked)} tensors are base plus adapter, at most {worst:.2g} times what rounding can do"
    kinds = sorted({one.product for one in looked} - {""})
    told += f"; s B A was rounded to {listed(kinds)} first" if kinds else ""
    weak = [one for one in looked if one.share is not None and one.share < _KEPT and not one.idle]
    if weak:
        least = min(weak, key=lambda one: one.share or 0.0)
        told += f"; rounding left {least.share or 0:.2f} of the change in {least.tensor}" + _others(len(weak) - 1)
    return Check("merged", True, told)


def _others(count: int) -> str:
    return f", little in {count} others" if count else ""


def _by_fault(found: Iterable[Found]) -> str:
    """What is wrong, with the tensors it is wrong with."""
    kinds: dict[str, list[str]] = {}
    for one in found:
        if one.fault:
            kinds.setdefault(one.fault, []).append(one.tensor)
    shown = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    return "; ".join(f"{listed(names, 2)} {fault}" for fault, names in shown[:4])


def check_rest(found: Sequence[Found], pairs: Sequence[Pair]) -> Check:
    """Every other tensor has the base's bytes; in another number type, the base's numbers."""
    others = [one for one in found if not one.touched]
    sizes = {pair.name: pair.here.nbytes for pair in pairs}
    wrong = _by_fault(others)
    nbytes = sum(sizes[one.tensor] for one in others)
    told = f"{len(others)} tensors, {nbytes / 1e9:.2f} GB, are the base's"
    return Check("untouched", not wrong, wrong or told)


def check_differs(found: Sequence[Found]) -> Check:
    """It is another model than the base. That a merge changed nothing is its most reported fault."""
    looked = [one for one in found if one.touched]
    same = [one for one in looked if one.same]
    if len(same) < len(looked):
        gone = [one.tensor for one in same if one.swallowed]
        told = f"{len(looked) - len(same)} of {len(looked)} tensors changed"
        told += f"; too small for their number type is the change of {listed(gone)}" if gone else ""
        return Check("differs from the base", True, told)
    if all(one.idle for one in looked):
        why = "the adapter changes nothing: A or B is zero in every module"
    elif all(one.swallowed or one.idle for one in looked):
        why = "the change is too small for the number type in every entry: merge in float32"
    else:
        why = "the adapter was not merged"
    return Check("differs from the base", False, f"it is the base: {why}")
