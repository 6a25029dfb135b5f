"""Random bits by position: the published generator, and the same bits however a matrix is divided."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ailora_tools.linalg.counter import philox, random_bits
from ailora_tools.linalg.rounding import Dither, round_stochastic

CPU = torch.device("cpu")
# Counter, key and result of philox4x32-10 in the known answers of Random123 (Salmon et al., SC 2011).
KNOWN = [
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFF_FFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_generator_gives_its_known_answers(counter: tuple[int, int, int, int], key: int, words: str) -> None:
    a, b, c, d = (torch.tensor([word]) for word in counter)
    assert " ".join(f"{int(word):08x}" for word in philox((a, b, c, d), key)) == words


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 300_000), count=st.integers(1, 100_000), cut=st.floats(0, 1))
def test_bits_depend_on_the_position_alone(first: int, count: int, cut: float) -> None:
    whole = random_bits(11, 0, first + count, CPU)[first:]
    middle = int(cut * count)
    parts = [random_bits(11, first, middle, CPU), random_bits(11, first + middle, count - middle, CPU)]
    assert torch.equal(whole, torch.cat(parts))


def test_positions_beyond_32_bits_have_bits_of_their_own() -> None:
    far = random_bits(11, 1 << 36, 1 << 16, CPU)
    assert not torch.equal(far, random_bits(11, 0, 1 << 16, CPU))


def test_bits_are_uniform_and_independent_of_their_neighbours_and_of_other_keys() -> None:
    count = 1 << 20
    bits, other = (random_bits(key, 0, count, CPU).double() / 65536 - 0.5 for key in (3, 4))
    assert abs(float(bits.mean())) < 5 / (12 * count) ** 0.5
    assert float(bits.std()) == pytest.approx(12**-0.5, rel=5e-3)
    histogram = torch.histc(bits, 256, -0.5, 0.5) * 256 / count
    assert float((histogram - 1).abs().max()) < 5 * (256 / count) ** 0.5
    for lag in (1, 2, 4096, 8192):  # 4096: elements that share a counter
        assert abs(float((bits[lag:] * bits[:-lag]).mean())) * 12 < 5 / count**0.5
    assert abs(float((bits * other).mean())) * 12 < 5 / count**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_matrix_rounds_alike_in_one_piece_and_by_rows(dtype: torch.dtype) -> None:
    x = torch.randn(300, 401, generator=torch.Generator().manual_seed(1))
    dither = Dither(5)
    rows = [round_stochastic(part, dtype, dither.at(401 * top)) for top, part in enumerate(x.split(1))]
    assert torch.equal(round_stochastic(x, dtype, dither), torch.cat(rows))
