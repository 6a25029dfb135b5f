"""Peak memory belongs to the largest matrices, not to the model."""

from __future__ import annotations

import json
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
MERGE = """
import resource, sys
from ailora_tools import merge
merge(sys.argv[1], sys.argv[1] + "/adapter", sys.argv[2], dtype="bfloat16")
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


def quantised(folder: Path, layers: int) -> Path:
    """In NF4, 20 MB a layer when written in bfloat16; an adapter on one matrix."""
    code = torch.linspace(-1, 1, 16)
    tensors = {"model.norm.weight": torch.ones(768)}
    for layer in range(layers):
        for leaf, rows in (("self_attn.q_proj", 768), ("self_attn.v_proj", 768), ("mlp.up_proj", 12_000)):
            name, entries = f"model.layers.{layer}.{leaf}.weight", rows * 768
            state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [rows, 768]})
            tensors |= {
                name: torch.randint(0, 256, (entries // 2, 1), dtype=torch.uint8),
                f"{name}.absmax": torch.rand(entries // 64), f"{name}.quant_map": code.clone(),
                f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
            }  # fmt: skip
    write_checkpoint(folder, tensors)
    module = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    write_checkpoint(
        folder / "adapter", {f"{module}_A.weight": torch.randn(2, 768), f"{module}_B.weight": torch.randn(768, 2)}
    )
    (folder / "adapter/model.safetensors").rename(folder / "adapter/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["layers.0.self_attn.q_proj"]}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
    return folder


def peak(source: Path, out: Path, code: str = MEASURE) -> int:
    """Bytes; started by a small process, because a child counts the memory of its parent's image."""
    command = [sys.executable, "-S", "-c", LAUNCH, "-c", code, str(source), str(out)]
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


def test_merging_into_few_bits_takes_the_memory_of_a_few_matrices(tmp_path: Path) -> None:
    peaks = {
        layers: peak(quantised(tmp_path / str(layers), layers), tmp_path / f"out{layers}", MERGE) for layers in (2, 12)
    }
    assert (tmp_path / "out12/model.safetensors").stat().st_size > 240e6
    assert peaks[12] - peaks[2] < 60e6
