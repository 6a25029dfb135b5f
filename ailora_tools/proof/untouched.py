"""Whether every tensor that the surgery did not touch has the source's bytes."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint.header import StoredTensor
from ..checkpoint.index import Checkpoint
from ..errors import listed
from .companions import same_bytes
from .folder import Check
from .matrices import ModuleLook
from .subject import Subject


def check_untouched(subject: Subject, source: Checkpoint, found: Sequence[ModuleLook]) -> Check:
    """Tensor by tensor; of fused tensors the lines beside the projections, which `found` tells."""
    touched = {record.tensor for record in subject.manifest.modules}
    changed = [module.projections[0].record.tensor for module in found if module.changed_beside]
    compared = 0
    for shard, header in source.headers.items():
        here = subject.base_headers.get(shard)
        if here is None:
            changed.append(f"{shard} (unreadable)")
            continue
        for name in header.tensors.keys() - touched:
            there = header.tensors[name]
            if name in here.tensors and _same(subject, here.tensors[name], source, there):
                compared += there.nbytes
            else:
                changed.append(name)
    detail = f"{compared / 1e9:.2f} GB of untouched tensors are the source's, byte for byte"
    return Check("untouched bytes", not changed, f"changed: {listed(sorted(changed))}" if changed else detail)


def _same(subject: Subject, here: StoredTensor, source: Checkpoint, there: StoredTensor) -> bool:
    alike = (there.dtype, there.shape) == (here.dtype, here.shape)
    ours, theirs = ((one.file, one.start, one.stop) for one in (here, there))
    return alike and same_bytes(subject.files, ours, source.files, theirs)
