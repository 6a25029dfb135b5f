"""`ailora-tools init` against PEFT's PiSSA on a checkpoint of Llama-3.2-1B's shape, each as a whole process.

    python examples/benchmarks/init_vs_peft.py [--layers 16] [--runs 3] [--rank 16]

Builds 16 layers of hidden size 2048 with 8 KV heads of 64 (2 GB in bfloat16, 32,000 tokens); W^Q and W^V have
the spectrum i^-0.3 and random singular vectors. Then, in turn: `cp -r` as the floor, PEFT `pissa`,
`pissa_niter_4` and `pissa_niter_16` (load, get_peft_model, save adapter and residual base), and
`ailora-tools init` with the methods ailora and pissa. Time and peak memory are the operating system's figures
for the process; the cosines compare the saved factors with an SVD in float64.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import describe, write_report
from safetensors import safe_open
from safetensors.torch import save_file

HIDDEN, KV, INNER, VOCAB = 2048, 512, 8192, 32_000
DECAY = 0.3
SHARDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--peft", nargs=3, metavar=("INIT", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peft:
        return peft_init(*options.peft, options.rank)
    with tempfile.TemporaryDirectory() as scratch:
        report = compare(Path(scratch), options.layers, options.runs, options.rank)
    write_report("init_vs_peft", report, table(report))
    return None


def compare(scratch: Path, layers: int, runs: int, rank: int) -> dict[str, Any]:
    """Run every contender `runs` times, in turn, so that a slow moment of the machine hits all alike."""
    source = build(scratch / "source", layers)
    commands = contenders(source, scratch / "out", rank)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    cosines: dict[str, dict[str, float]] = {}
    truth = true_subspaces(source, layers, rank)
    for _ in range(runs):
        for name, command in commands.items():
            figures[name].append(measure(command))
            print(f"{name}: {figures[name][-1][0]:.1f} s, {figures[name][-1][1]:.0f} MB", file=sys.stderr)
            if name not in cosines and name != "cp -r":
                cosines[name] = worst_cosines(scratch / "out", truth, minor_v=name == "ailora-tools ailora")
            shutil.rmtree(scratch / "out")
    size = sum(path.stat().st_size for path in source.iterdir())
    rows = [
        {
            "name": name,
            "seconds": statistics.median(seconds for seconds, _ in measured),
            "seconds_all": [round(seconds, 2) for seconds, _ in measured],
            "peak_mb": max(peak for _, peak in measured),
            **{f"worst_cosine_{role}": value for role, value in cosines.get(name, {}).items()},
        }
        for name, measured in figures.items()
    ]
    shape = {"layers": layers, "hidden": HIDDEN, "kv_rows": KV, "bytes": size, "rank": rank, "spectrum": f"i^-{DECAY}"}
    return {"machine": describe(), "checkpoint": shape, "runs": runs, "results": rows}


def contenders(source: Path, out: Path, rank: int) -> dict[str, list[str]]:
    python, here = sys.executable, str(Path(__file__))
    ours = [python, "-m", "ailora_tools", "init", str(source), "--rank", str(rank), "-o", str(out), "--quiet"]
    peft = {
        f"PEFT {init}": [python, here, "--rank", str(rank), "--peft", init, str(source), str(out)]
        for init in ("pissa", "pissa_niter_4", "pissa_niter_16")
    }
    return {
        "cp -r": ["cp", "-r", str(source), str(out)],
        **peft,
        "ailora-tools pissa": [*ours, "--method", "pissa"],
        "ailora-tools ailora": ours,
    }


# A small process in between: a child counts the memory of the process that it was forked from as its own.
LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MB (10^6 bytes) of one process."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, text=True, env={**os.environ, **quiet})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def peft_init(init: str, source: str, out: str, rank: int) -> None:
    """What PEFT's own PiSSA example does: load, initialise, save the adapter, save the residual base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(Path(out) / "ailora_init")
    adapted.unload().save_pretrained(out)


def build(folder: Path, layers: int) -> Path:
    """The checkpoint, shard by shard; spectra as in the docstring, everything else noise."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def noise(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    sides = {rows: torch.linalg.qr(torch.randn(rows, rows, generator=generator))[0] for rows in (HIDDEN, KV)}
    weight_map, total = {}, 0
    for shard in range(SHARDS):
        tensors = {"model.embed_tokens.weight": noise(VOCAB, HIDDEN)} if shard == 0 else {}
        tensors |= {"model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)} if shard == 0 else {}
        for layer in range(shard * layers // SHARDS, (shard + 1) * layers // SHARDS):
            prefix = f"model.layers.{layer}"
            for name, rows in (("q_proj", HIDDEN), ("v_proj", KV)):
                tensors[f"{prefix}.self_attn.{name}.weight"] = decaying(sides[rows], sides[HIDDEN], generator)
            tensors[f"{prefix}.self_attn.k_proj.weight"] = noise(KV, HIDDEN)
            tensors[f"{prefix}.self_attn.o_proj.weight"] = noise(HIDDEN, HIDDEN)
            tensors[f"{prefix}.mlp.gate_proj.weight"] = noise(INNER, HIDDEN)
            tensors[f"{prefix}.mlp.up_proj.weight"] = noise(INNER, HIDDEN)
            tensors[f"{prefix}.mlp.down_proj.weight"] = noise(HIDDEN, INNER)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", config(layers))
    return folder


def decaying(left: torch.Tensor, right: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(rows of left, rows of right) with singular values i^-0.3 and shuffled orthonormal vectors."""
    rank = len(left)
    U = left[torch.randperm(len(left), generator=generator)]
    V = right[torch.randperm(len(right), generator=generator)][:, :rank]
    S = torch.arange(1, rank + 1) ** -DECAY
    return ((U * S) @ V.T).to(torch.bfloat16)


def config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "intermediate_size": INNER, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": VOCAB, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
    }  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


Truth = dict[str, tuple[torch.Tensor, torch.Tensor]]


def true_subspaces(source: Path, layers: int, rank: int) -> Truth:
    """module -> left singular vectors, top and bottom `rank`, by LAPACK in float64."""
    truth = {}
    for layer in range(layers):
        for name in ("q_proj", "v_proj"):
            module = f"model.layers.{layer}.self_attn.{name}"
            U, _, _ = torch.linalg.svd(read(source, f"{module}.weight").double(), full_matrices=False)
            truth[module] = (U[:, :rank].clone(), U[:, -rank:].clone())
    return truth


def read(source: Path, tensor: str) -> torch.Tensor:
    shard = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"][tensor]
    with safe_open(source / shard, "pt") as file:
        return file.get_tensor(tensor)


def worst_cosines(out: Path, truth: Truth, minor_v: bool) -> dict[str, float]:
    """Smallest cosine of a principal angle between the span of lora_B and the truth, over all layers, by role."""
    worst = {"q": 1.0, "v": 1.0}
    with safe_open(out / "ailora_init" / "adapter_model.safetensors", "pt") as file:
        for module, (top, bottom) in truth.items():
            role = module[-6]
            B = file.get_tensor(f"base_model.model.{module}.lora_B.weight").double()
            wanted = bottom if role == "v" and minor_v else top
            cosine = float(torch.linalg.svdvals(torch.linalg.qr(B)[0].T @ wanted).min())
            worst[role] = min(worst[role], cosine)
    return worst


def table(report: dict[str, Any]) -> str:
    rows = report["results"]
    exact = next(row["seconds"] for row in rows if row["name"] == "PEFT pissa")
    head = ["whole process", "wall time", "times faster than PEFT exact", "peak memory", "worst cosine W^Q", "W^V"]
    lines = [
        f"| {' | '.join(head)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cosines = [f"{row[f'worst_cosine_{role}']:.7f}" if f"worst_cosine_{role}" in row else "-" for role in "qv"]
        ratio = f"{exact / row['seconds']:.1f}"
        lines.append(
            f"| {row['name']} | {row['seconds']:.1f} s | {ratio} | {row['peak_mb']:.0f} MB | {' | '.join(cosines)} |"
        )
    shape = report["checkpoint"]
    lines.append(
        f"\n{shape['layers']} layers, hidden {shape['hidden']}, {shape['bytes'] / 1e9:.2f} GB bfloat16, "
        f"rank {shape['rank']}, spectrum {shape['spectrum']}; median of {report['runs']} runs, peak the largest."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
