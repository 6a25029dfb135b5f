"""IEEE arithmetic whatever the process has set: what is recorded and proven must not hang on a line of the caller's.

TensorFloat32 keeps 10 bits of a factor's fraction and bfloat16 only 7 (PyTorch, notes on numerical accuracy), so that a
product in them is not what the manifest says of it. Settings of the process are put back when the last verb that runs
is done, those of a thread by each.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_AUTOCAST = ("cpu", "cuda", "mps")
_PARENTS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))  # a "none" below them takes their value
_PRODUCTS = (("cuda", "matmul"), ("mkldnn", "matmul"))
_TINY, _ONE = math.ulp(0.0), 1.0

_lock = threading.Lock()
_inside = 0
_restore: Callable[[], None] = ExitStack().close


@contextmanager
def ieee() -> Iterator[None]:
    """Float32 products in float32, float32 as the default dtype, subnormal numbers, the CPU as the default device, no
    autocast, no inference mode and no gradients; everything as it was afterwards, after errors too."""
    import torch

    _enter()
    try:
        with ExitStack() as stack:
            for context in (torch.inference_mode(False), torch.no_grad()):
                stack.enter_context(context)
            for device in _AUTOCAST:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            if _TINY * _ONE == 0.0:  # the flag has no getter; threads inherit it from the one that starts them
                torch.set_flush_denormal(False)
                stack.callback(torch.set_flush_denormal, True)
            yield
    finally:
        _leave()


def _enter() -> None:
    """The first verb of the process sets, others find it set."""
    global _inside, _restore
    with _lock:
        if not _inside:
            _restore = _set_process()
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if not _inside:
            _restore()


def _set_process() -> Callable[[], None]:
    """Set what all threads share; returns what puts it back."""
    import torch

    dtype = torch.get_default_dtype()
    own = _own_precisions()
    for place in own:
        _precision(place, "ieee")
    # Only now: the older interface refuses to answer while the newer one says something else.
    older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)

    def restore() -> None:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(older)
        for place, value in own.items():
            _precision(place, value)

    return restore


def _own_precisions() -> dict[tuple[str, str], str]:
    """What is set for products themselves, "none" where they follow a setting above; empty before PyTorch 2.9."""
    import torch

    read: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
    if read is None:
        return {}
    above = {}
    for place in _PARENTS:  # from the top: what is read below is then its own
        above[place] = read(*place)
        _precision(place, "none")
    own = {place: read(*place) for place in _PRODUCTS}
    for place, value in above.items():
        _precision(place, value)
    return own


def _precision(place: tuple[str, str], value: str) -> None:
    """torch.backends.cuda.matmul.fp32_precision and its kin, without their check for frozen flags."""
    import torch

    torch._C._set_fp32_precision_setter(*place, value)
