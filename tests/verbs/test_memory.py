"""Peak memory belongs to the largest matrices, not to the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from kit.checkpoints import write_checkpoint

MEASURE = """
import resource, sys
from ailora_tools import initialize
initialize(sys.argv[1], 8, output=sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
LAUNCH = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"


def checkpoint(folder: Path, layers: int) -> Path:
    """About 21 MB a layer in bfloat16."""
    tensors = {}
    for layer in range(layers):
        for leaf in ("q_proj", "v_proj"):
            tensors[f"model.layers.{layer}.self_attn.{leaf}.weight"] = torch.randn(768, 768).bfloat16()
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.zeros(12_000, 768, dtype=torch.bfloat16)
    return write_checkpoint(folder, tensors)


def peak(source: Path, out: Path) -> int:
    """Bytes; started by a small process, because a child counts the memory of its parent's image."""
    command = [sys.executable, "-S", "-c", LAUNCH, "-c", MEASURE, str(source), str(out)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks, sizes = {}, {}
    for layers in (1, 4, 16):
        source = checkpoint(tmp_path / str(layers), layers)
        sizes[layers] = (source / "model.safetensors").stat().st_size
        peaks[layers] = peak(source, tmp_path / f"out{layers}")
    assert sizes[16] - sizes[4] > 240e6
    # Two matrices at a time are in work from the second layer on.
    assert peaks[16] - peaks[4] < 25e6
    assert peaks[4] - peaks[1] < 60e6
