"""Decompositions of every scale, dtype and rule against float64 numpy: right, or refused by name where it must be."""

from __future__ import annotations

from itertools import islice

import pytest
from kit.extremes import MATRICES, cases, fault, is_large
from kit.tally import Tally

EACH = 17  # of the small matrices' cases: about 300


@pytest.mark.parametrize("start", range(4))
def test_a_sample_is_right_or_refused_with_reason(start: int) -> None:
    small = (case for name in MATRICES if not is_large(name) for case in cases(name))
    assert not {case: found for case in islice(small, start * EACH, None, 4 * EACH) if (found := fault(case))}


@pytest.mark.faults
@pytest.mark.parametrize("matrix", MATRICES)
def test_every_decomposition_is_right_or_refused_with_reason(matrix: str) -> None:
    tally = Tally("decompositions against float64: matrices, rules, dtypes and scalings")
    for case in cases(matrix):
        tally.add(str(case), [found] if (found := fault(case)) else [])
    tally.close()
