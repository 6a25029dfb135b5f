"""Whether every tensor that the surgery did not touch has the source's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint.index import Checkpoint
from ..errors import listed
from .folder import Check
from .look import ModuleLook
from .one_pass import Passed
from .subject import Subject


def check_untouched(
    subject: Subject, source: Checkpoint, files: Mapping[str, Passed], found: Sequence[ModuleLook]
) -> Check:
    """Tensor by tensor, as `files` tells of each shard; of fused tensors the lines beside the projections, which
    `found` tells."""
    changed = [module.projections[0].record.tensor for module in found if module.changed_beside]
    compared = 0
    for shard, header in source.headers.items():
        here = subject.base_headers.get(shard)
        if here is None:
            changed.append(f"{shard} (unreadable)")
            continue
        changed += [*files[shard].changed, *(header.tensors.keys() - here.tensors.keys() - subject.touched_names)]
        compared += files[shard].compared
    detail = f"{compared / 1e9:.2f} GB of untouched tensors are the source's, byte for byte"
    return Check("untouched bytes", not changed, f"changed: {listed(sorted(changed))}" if changed else detail)
