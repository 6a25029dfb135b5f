"""Peak memory of verbs, in a process that has imported everything first.

    python tests/kit/peaks.py SCRATCH SIDE ROWS VERB...

Prints a JSON object: for each verb the bytes that it took at most beside what was there before it. W^Q is (SIDE, SIDE),
W^V (ROWS, SIDE), bfloat16, a layer of both; "init" and "init --no-base" make what "verify" and others need.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import ailora_tools
from ailora_tools.output.names import ADAPTER_FOLDER
from ailora_tools.verbs import analyze, convert, initialize, merge, verify  # noqa: F401
from kit.checkpoints import write_checkpoint


def kept(name: str) -> int:
    """Bytes that /proc/self/status tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def model(folder: Path, side: int, rows: int, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.layers.0.self_attn.{name}.weight": (0.02 * torch.randn(m, side, generator=generator)).to(torch.bfloat16)
        for name, m in (("q_proj", side), ("v_proj", rows))
    }
    heads = {"num_attention_heads": side // 128, "num_key_value_heads": max(1, rows // 128)}
    return write_checkpoint(folder, tensors, hidden_size=side, num_hidden_layers=1, **heads)


def calls(scratch: Path, side: int, rows: int) -> dict[str, Callable[[], object]]:
    base, offset = scratch / "base", scratch / "offset"
    source, tuned = model(scratch / "model", side, rows, 0), model(scratch / "tuned", side, rows, 1)
    start = base / ADAPTER_FOLDER
    return {
        "init": lambda: ailora_tools.initialize(source, 16, output=base),
        "init --no-base": lambda: ailora_tools.initialize(source, 16, no_base=True, output=offset),
        "analyze": lambda: ailora_tools.analyze(source, output=scratch / "report"),
        "analyze --against": lambda: ailora_tools.analyze(source, against=[tuned], output=scratch / "compared"),
        "verify": lambda: ailora_tools.verify(base),
        "verify of --no-base": lambda: ailora_tools.verify(offset),
        "merge": lambda: ailora_tools.merge(base, start, scratch / "merged"),
        "convert": lambda: ailora_tools.convert(start, base, scratch / "plain"),
        "extract": lambda: ailora_tools.extract(source, tuned, scratch / "lora", rank=16),
    }


def settled() -> int:
    """Resident bytes when what is not used any more has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return kept("VmRSS:")


def peak(call: Callable[[], object]) -> int:
    before = settled()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
    call()
    return kept("VmHWM:") - before


def main() -> None:
    scratch, side, rows, *verbs = sys.argv[1:]
    made = calls(Path(scratch), int(side), int(rows))
    torch.linalg.eigvalsh(torch.eye(8))  # what torch loads with the first use of LAPACK
    print(json.dumps({verb: peak(made[verb]) for verb in verbs}))


if __name__ == "__main__":
    main()
