"""Columns that grow in one place."""

from __future__ import annotations

import torch

from ailora_tools.linalg.basis import Basis


def test_a_basis_is_what_was_appended_to_it() -> None:
    blocks = [torch.randn(7, width, generator=torch.Generator().manual_seed(width)) for width in (2, 3, 1, 9, 4)]
    basis = Basis(blocks[0])
    for count, block in enumerate(blocks[1:], start=2):
        before = basis.columns.clone()
        basis.append(block)
        assert torch.equal(basis.columns, torch.cat(blocks[:count], 1))
        assert torch.equal(basis.columns[:, : before.shape[1]], before)
