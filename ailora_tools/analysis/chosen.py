"""Which modules to adapt, by an analysis: those of the smallest condition numbers, or those that changed most. Pure.

The first is KappaTune's choice (arXiv 2506.16289; `peft.helpers.KappaTuneSelector` since PEFT 0.20): a well-conditioned
matrix is taken to hold little that training could overwrite. The second is a measurement, of another training of the
same model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError
from ..metrics.modules import scores
from ..targets.projections import Plan

RULES = {
    "condition": "the modules of the smallest condition numbers s_1 / (s_k + 1e-8), as PEFT's KappaTune has it; of the "
    "matrices in a fused module the largest counts",
    "change": "the modules that fine-tuning changed most, by norm(W1 - W0) / norm(W0); of several fine-tunes the mean",
}


def parse_share(text: str | float, plan: Plan) -> int:
    """A share of the modules ("0.2") or a number of them ("24") -> how many; OptionError for anything else."""
    count = len(plan.carriers)
    hit = re.fullmatch(r"(\d+)|(\d*\.\d+)", str(text).strip())
    wanted = 0 if hit is None else int(hit[1]) if hit[1] else max(1, int(count * float(hit[2]))) * (float(hit[2]) > 0)
    if not 1 <= wanted <= count:
        raise OptionError(
            f"--suggest-targets {text!r}: neither a share of the {count} modules nor a number of them.",
            "Such as 0.2 or 24.",
        )
    return wanted


def suggest_targets(document: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The `count` best modules, the best first, and their paths as a list that any trainer takes."""
    basis = "change" if document["against"] else "condition"
    found = scores(document["matrices"], basis)
    best = sorted(found, key=found.__getitem__, reverse=basis == "change")[:count]
    return {
        "rule": RULES[basis],
        "basis": basis,
        "of": len(found),
        "modules": [{"module": module, basis: found[module]} for module in best],
        "target_modules": sorted(best),
    }
