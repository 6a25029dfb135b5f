"""Random bits that are a function of a key and a position: the same on every device, in any order and partition."""

from __future__ import annotations

import torch
from torch import Tensor

from . import portions

_ROUNDS = 10
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)  # of the two halves of the key, from round to round
_WORD = 0xFFFFFFFF
_LANE = 4096  # counters of a tile; eight of its elements, a lane apart, share one
_TILE = 8 * _LANE
_TILES_AT_ONCE = 4  # 128 kB for each of the words, so that the rounds stay in the cache


def philox(counters: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011): four words of 32 bits from four, all int64 of one shape and device, and
    a key of 64 bits. The counters are overwritten."""
    a, b, c, d = counters
    halves = [key & _WORD, key >> 32 & _WORD]
    for _ in range(_ROUNDS):
        first, second = a * _FACTORS[0], c * _FACTORS[1]  # modulo 2^64, the sign bit being one of the 64
        a = (second >> 32).bitwise_xor_(b).bitwise_xor_(halves[0]).bitwise_and_(_WORD)
        c = (first >> 32).bitwise_xor_(d).bitwise_xor_(halves[1]).bitwise_and_(_WORD)
        b, d = second.bitwise_and_(_WORD), first.bitwise_and_(_WORD)
        halves = [(half + step) & _WORD for half, step in zip(halves, _STEPS, strict=True)]
    return a, b, c, d


def random_bits(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """16 random bits for each of the elements `first` to `first + count` of anything, as int32 (count,)."""
    low, high = first // _TILE, -(-(first + count) // _TILE)
    bits = torch.empty(high - low, 8, _LANE, dtype=torch.int32, device=device)
    at_once = portions.elements(device, _TILES_AT_ONCE * _TILE) // _TILE
    for tile in range(low, high, at_once):
        part = bits[tile - low : tile - low + at_once]
        counter = torch.arange(tile * _LANE, (tile + len(part)) * _LANE, device=device).view(len(part), _LANE)
        zero = torch.zeros_like(counter)
        for at, word in enumerate(philox((counter & _WORD, counter >> 32, zero, zero), key)):
            part[:, 2 * at], part[:, 2 * at + 1] = word & 0xFFFF, word >> 16
    return bits.view(-1)[first - low * _TILE :][:count]
