"""How much of a matrix is worked on at a time: on the CPU what stays in its caches, on a device what fills it."""

from __future__ import annotations

import torch

_FILLING = 1 << 24  # elements: 128 MB in float64, and a large matrix is a few of these, not some hundreds
_WIDER = 8  # times a side that suits the CPU


def elements(device: torch.device, cached: int) -> int:
    """`cached` elements, or as many as keep a device busy for longer than it takes to launch its kernels."""
    return max(cached, _FILLING) if accelerated(device) else cached


def side(device: torch.device, cached: int) -> int:
    """The same for the side of a block."""
    return cached * _WIDER if accelerated(device) else cached


def accelerated(device: torch.device) -> bool:
    """Whether it is anything but the CPU."""
    return device.type != "cpu"
