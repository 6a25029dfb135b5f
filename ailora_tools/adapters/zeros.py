"""A QA-LoRA in the zero points of its base: (q - zero') scale = W + dW with zero' = zero - dW / scale, where dW is the
same for all inputs that share a scale (arXiv 2309.14717, section 3.3). MLX stores q scale + bias, so bias' = bias + dW.
q and scale keep their bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import Files
from ..checkpoint.header import StoredTensor
from ..checkpoint.index import Checkpoint
from ..errors import TargetError
from ..matrices.quantisation import Quantised
from ..matrices.restore import Restored
from .apply import require_absent
from .folder import Adapter, Factors
from .places import Change, Place, Places
from .pooled import GROUP, is_constant

if TYPE_CHECKING:
    from torch import Tensor

_HOLDING = "int8"  # zero points may be floats in compressed-tensors' "int-quantized"
_BIASED = "mlx"  # biases, in the dtype of the scales
_INTEGER = ("gptq", "awq", "packed")
_TURNED = ("gptq", "awq")  # scales (groups, out)
_KIND = "F16"
_WHOLE = "Merge into the 16-bit model: without --zeros."
_DIVERGED = f"If its training did not diverge: {_WHOLE}"
_BEYOND = f"A zero point is too large for float16, or a scale is zero. {_WHOLE}"


def into_zeros(stored: Checkpoint, restored: Restored, found: Places, adapter: Adapter) -> tuple[Restored, Places]:
    """`restored` as the base in few bits with zero points in float16, or MLX's biases, and `found` with those in the
    places of matrices.

    Raises TargetError where the change is not one of zero points, or the format holds integers only: with the share of
    this change that would be lost.
    """
    held = {
        place: restored.matrices[place.stored.name] for place in found.places if place.stored.name in restored.matrices
    }
    if not held:
        raise TargetError(f"{adapter.location} changes no matrix in few bits of {stored.location}.", _WHOLE)
    for place, quantised in held.items():
        _require_foldable(place, quantised, adapter, stored.files)
    every = restored.matrices.values()
    if all(quantised.format.name == _BIASED for quantised in every):
        return _into_biases(stored, held, found)
    others = [quantised for quantised in every if quantised.format.name != _HOLDING]
    if others:
        raise _no_room(others[0], held, adapter, stored.files)
    zeros = {_name(quantised): quantised for quantised in every}
    new = {name: _zero_point(name, quantised) for name, quantised in zeros.items()}
    old = frozenset(piece.name for one in zeros.values() if (piece := one.pieces.get("zeros")))
    plain = replace(stored, headers=_headers(stored, new, old), config=_config(stored), sound_index=False)
    moved = _moved(found, {place: new[_name(quantised)] for place, quantised in held.items()})
    return Restored(plain, zeros, old, in_zeros=True), moved


def _into_biases(stored: Checkpoint, held: Mapping[Place, Quantised], found: Places) -> tuple[Restored, Places]:
    """The checkpoint as it is: tensors of the same names and dtypes are written anew in their places."""
    biases = {place: quantised.pieces["biases"] for place, quantised in held.items()}
    matrices = {biases[place].name: quantised for place, quantised in held.items()}
    return Restored(stored, matrices, frozenset(), in_zeros=True), _moved(found, biases)


def _moved(found: Places, to: Mapping[Place, StoredTensor]) -> Places:
    places = (replace(place, name=to[place].name, stored=to[place]) if place in to else place for place in found.places)
    return replace(found, places=tuple(places))


def folded(
    q: Tensor, W: Tensor, adapter: Adapter, files: Files, place: Place, quantised: Quantised
) -> tuple[Tensor, float, float]:
    """The zero points (out, groups) in float16 of one matrix W (out, in), float32, stored as q, or its biases in their
    dtype; norm(W' - W) / norm(W); and norm(W' - W - dW) / norm(dW), with W' as compressed-tensors computes it, in the
    dtype of the scales, and as MLX's kernels do, in float32.

    NumericalError where that dtype does not hold them.
    """
    change = None
    if (factors := place.change.factors) is not None:
        A, B = (adapter.load(part).to(W) for part in (factors.A, factors.B))
        require_absent(W, A, factors.scaling * B, f"{adapter.location}: {factors.B.name}")
        change = _change(adapter, factors, _width(quantised)).to(W.device)
    if change is not None and quantised.format.name == _BIASED:
        return _biased(W, change, place, quantised, files)
    return _zeroed(q, W, change, place, quantised, files)


def _biased(W: Tensor, change: Tensor, place: Place, quantised: Quantised, files: Files) -> tuple[Tensor, float, float]:
    from ..checkpoint.stream import load_matrix
    from ..linalg.finite import stored
    from ..linalg.scale import norm

    biases = load_matrix(files, quantised.pieces["biases"]).to(W.device)
    new = stored(biases.double() + change, biases.dtype, place.name, _DIVERGED)
    moved, asked, size = new.double() - biases.double(), norm(change), norm(W)
    lost = norm(moved - change) / asked if asked else 0.0
    return new.cpu().contiguous(), math.sqrt(_width(quantised)) * norm(moved) / size if size else 0.0, lost


def _zeroed(
    q: Tensor, W: Tensor, change: Tensor | None, place: Place, quantised: Quantised, files: Files
) -> tuple[Tensor, float, float]:
    import torch

    from ..checkpoint.stream import DTYPES, load_matrix
    from ..linalg.finite import stored
    from ..linalg.scale import norm

    scale, piece = _scales(quantised, files).to(W.device), quantised.pieces.get("zeros")
    zeros = torch.zeros_like(scale) if piece is None else load_matrix(files, piece).to(scale).reshape(scale.shape)
    width = _width(quantised)
    if change is None:
        return _as_float16(zeros, place.name).reshape(place.stored.shape), 0.0, 0.0
    new = stored(zeros - (change / scale).where(change != 0, 0.0), torch.float16, place.name, _BEYOND)
    kind = DTYPES[quantised.pieces["scale"].dtype]
    theirs = (q.to(kind) - new.to(kind).repeat_interleave(width, 1)) * scale.to(kind).repeat_interleave(width, 1)
    moved = theirs.double() - W
    wanted, size = change.repeat_interleave(width, 1), norm(W)
    asked = norm(wanted)
    lost = norm(moved - wanted) / asked if asked else 0.0
    return new.cpu().reshape(place.stored.shape).contiguous(), norm(moved) / size if size else 0.0, lost


def _as_float16(zeros: Tensor, name: str) -> Tensor:
    """Zero points that nothing changes; TargetError unless float16 has all of them."""
    if bool((zeros.half().to(zeros) != zeros).any()):
        raise TargetError(f"{name}: float16 does not hold the zero points that are there.", _WHOLE)
    return zeros.half().cpu().contiguous()


def _change(adapter: Adapter, factors: Factors, width: int) -> Tensor:
    """dW (out, groups) in float64: one input of each group stands for all."""
    A, B = (adapter.load(stored).double() for stored in (factors.A, factors.B))
    return factors.scaling * (B @ A[:, ::width])


def _scales(quantised: Quantised, files: Files) -> Tensor:
    """(out, groups), float64."""
    from ..checkpoint.stream import load_matrix

    scale = load_matrix(files, quantised.pieces["scale"]).double()
    return scale.T if quantised.format.name in _TURNED else scale.reshape(quantised.shape[0], -1)


def _width(quantised: Quantised) -> int:
    """How many inputs share a scale and a zero point; 0 where each row has none of its own."""
    shape = quantised.pieces["scale"].shape
    rows, columns = quantised.shape
    high, groups = shape[::-1] if quantised.format.name in _TURNED and len(shape) == 2 else (*shape, 1, 1)[:2]
    return columns // groups if high == rows and groups and not columns % groups else 0


def _require_foldable(place: Place, quantised: Quantised, adapter: Adapter, files: Files) -> None:
    """TargetError unless what the adapter does to this matrix is the same for all inputs that share a scale."""
    name, factors = place.name.removesuffix(".weight"), place.change.factors
    if not {"scale"} <= quantised.pieces.keys() or quantised.format.name not in (_HOLDING, _BIASED, *_INTEGER):
        raise TargetError(f"{name} is stored as {quantised.label}, which has no zero points.", _WHOLE)
    width = _width(quantised)
    if not width:
        raise TargetError(f"{name}: its scale is not one of each row, or of groups of inputs in each row.", _WHOLE)
    only = factors is not None and place.change == Change(factors=factors) and factors.magnitude is None
    if factors is None or not only or place.transposed or place.added:
        raise TargetError(f"{adapter.location} does more to {name} than to add B A, which no zero point holds.", _WHOLE)
    if _reordered(quantised, width, files):
        raise TargetError(
            f"{name}: the inputs that share a scale are no neighbours (act order): a sum over neighbours has no place "
            "in their zero points.",
            _WHOLE,
        )
    A, group = adapter.load(factors.A), adapter.config.get(GROUP)
    if is_constant(A, width):
        return
    if isinstance(group, int) and group > 1 and is_constant(A, group):
        raise TargetError(
            f"{name}: {width} inputs share a zero point, and groups of {group} are no multiple of that.",
            f"Train with --group-size {width}, or a multiple of it. {_WHOLE}",
        )
    raise TargetError(
        f"{adapter.location} is a plain LoRA: what it adds to {name} differs between the {width} inputs that share a "
        "zero point.",
        f"Only QA-LoRA (init --method qalora) can go there. {_WHOLE}",
    )


def _reordered(quantised: Quantised, width: int, files: Files) -> bool:
    from ..checkpoint.stream import load_matrix

    if (piece := quantised.pieces.get("groups")) is None:
        return False
    places = load_matrix(files, piece).flatten().tolist()
    return places != [column // width for column in range(quantised.shape[1])]


def _no_room(other: Quantised, held: Mapping[Place, Quantised], adapter: Adapter, files: Files) -> TargetError:
    """What integer zero points would keep of the change: |dW / scale| far below 1 rounds to 0."""
    lost = total = 0.0
    for place, quantised in held.items():
        if place.change.factors is not None:
            change = _change(adapter, place.change.factors, _width(quantised))
            scale, entries = _scales(quantised, files), math.sqrt(_width(quantised))
            steps = (change / scale).where(change != 0, 0.0)
            lost = math.hypot(lost, entries * float(((steps - steps.round()) * scale).norm()))
            total = math.hypot(total, entries * float(change.norm()))
    share = (
        f"{lost / total:.1%} of the change of this adapter would be lost" if total else "this adapter changes nothing"
    )
    return TargetError(
        f"{other.label}: its zero points are no floats. In whole numbers {share}.",
        f'Only "int-quantized" of compressed-tensors, with zero points in float16, and MLX have room. {_WHOLE}',
    )


def _name(quantised: Quantised) -> str:
    return f"{quantised.pieces['main'].name}_zero_point"


def _zero_point(name: str, quantised: Quantised) -> StoredTensor:
    """In float16, one for each scale; its bytes are those of the main piece, from which it is made."""
    return replace(quantised.pieces["main"], name=name, dtype=_KIND, shape=quantised.pieces["scale"].shape)


def _headers(stored: Checkpoint, new: Mapping[str, StoredTensor], old: frozenset[str]) -> dict[str, Any]:
    headers = {}
    for shard, header in stored.headers.items():
        kept = {name: one for name, one in header.tensors.items() if name not in old}
        headers[shard] = replace(header, tensors=kept | {name: one for name, one in new.items() if one.file == shard})
    return headers


def _config(stored: Checkpoint) -> dict[str, Any]:
    """config.json that says of every group of matrices that zero points are there, in float16."""
    held = stored.config.get("quantization_config")
    settings = held if isinstance(held, dict) else {}
    groups = settings.get("config_groups")
    named = {name: one for name, one in groups.items() if isinstance(one, dict)} if isinstance(groups, dict) else {}
    forms = {one.get("format") or settings.get("format") for one in named.values()}
    if forms != {"int-quantized"} or not all(isinstance(one.get("weights"), dict) for one in named.values()):
        raise TargetError(
            f"{stored.location}: quantization_config of config.json does not say int-quantized of every group.", _WHOLE
        )
    told = {"symmetric": False, "zp_dtype": "torch.float16"}
    changed = {name: {**one, "weights": {**one["weights"], **told}} for name, one in named.items()}
    return {**stored.config, "quantization_config": {**settings, "config_groups": changed}}


def about_zeros(restored: Restored) -> list[str]:
    """What becomes of the base, as a notice."""
    if not restored.added:
        return [f"the base stays in few bits; the biases of {len(restored.matrices)} matrices change, nothing else"]
    return [f"{len(restored.matrices)} matrices stay in few bits; their zero points become float16"]


def about_lost(shares: Mapping[str, float]) -> tuple[float, str]:
    """The largest share of a change that rounding takes, and a notice of it."""
    name, share = max(shares.items(), key=lambda one: one[1])
    return share, f"rounding takes {share:.1%} of the change of {name}, and no more of any other"
