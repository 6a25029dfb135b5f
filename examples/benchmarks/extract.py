"""`ailora-tools extract` against `mergekit-extract-lora` on the same pairs of models, each as a whole process.

    python examples/benchmarks/extract.py --mergekit PYTHON [--layers 2] [--rank 32]

PYTHON is one that has mergekit, in an environment of its own. Pairs: the BERTs of the package `rxnfp` (12 layers,
hidden 256, float32), base and fine-tune; and layers of the shape of Llama-3.2-1B in bfloat16 whose every matrix got a
change of slowly decaying spectrum. CPU time (user and system) and peak memory are the operating system's figures for
the process with one thread; errors are computed here, in float64, from the factors that were written: norm of what is
left of all changes over their norm, on the modules that both tools wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from machine import describe, write_report
from safetensors.torch import load_file, save_file
from torch import Tensor

HIDDEN, KV, INNER, VOCAB = 2048, 512, 8192, 16_384
ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", required=True, metavar="PYTHON")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rank", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pairs = [
            ("rxnfp", reactions(Path(scratch, "rxnfp"))),
            ("1B-shaped", llama(Path(scratch, "1b"), options.layers)),
        ]
        results = [
            row for name, pair in pairs for row in compare(name, *pair, Path(scratch), options.rank, options.mergekit)
        ]
    version = subprocess.run(
        [options.mergekit, "-c", "from importlib.metadata import version; print(version('mergekit'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    report = {
        "machine": describe(), "mergekit": version, "layers": options.layers, "rank": options.rank, "results": results,
    }  # fmt: skip
    write_report("extract", report, table(report))


def compare(
    name: str, base: Path, tuned: Path, scratch: Path, rank: int, mergekit: str
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One row a tool: seconds of the CPU, peak and error."""
    ours = [sys.executable, "-m", "ailora_tools", "extract", base, tuned, "--rank", rank, "--quiet"]
    theirs = [
        mergekit, "-m", "mergekit.scripts.extract_lora", "--model", tuned, "--base-model", base, "--max-rank", rank,
    ]  # fmt: skip
    commands = {
        "mergekit-extract-lora": [*theirs, "--out-path", scratch / f"{name}-mergekit"],
        "ailora-tools extract": [*ours, "-o", scratch / f"{name}-ours"],
        "ailora-tools extract --dtype bfloat16": [*ours, "--dtype", "bfloat16", "-o", scratch / f"{name}-narrow"],
    }
    cost = {tool: measure([str(word) for word in command]) for tool, command in commands.items()}
    folders = dict(zip(commands, (scratch / f"{name}-{end}" for end in ("mergekit", "ours", "narrow")), strict=True))
    errors = left_over(base, tuned, folders)
    for tool, (seconds, peak) in cost.items():
        yield {"pair": name, "tool": tool, "cpu_seconds": seconds, "peak_mb": peak, "error": errors[tool]}


# A small process in between: a child counts the memory of the process that it was forked from as its own.
LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak resident MB (10^6 bytes) of one process and those that it started."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, text=True, env={**os.environ, **quiet})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    seconds, peak = done.stdout.split()
    print(f"{command[2]}: {float(seconds):.1f} s, {float(peak):.0f} MB", file=sys.stderr)
    return float(seconds), float(peak)


def left_over(base: Path, tuned: Path, folders: Mapping[str, Path]) -> dict[str, float]:
    """The error of each tool over all modules that every tool has."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    written = {tool: factors(folder) for tool, folder in folders.items()}
    shared = set.intersection(*(set(held) for held in written.values()))
    whole, left = 0.0, dict.fromkeys(folders, 0.0)
    for module in sorted(shared):
        D = after[f"{module}.weight"].double() - before[f"{module}.weight"].double()
        whole += float(D.square().sum())
        for tool, held in written.items():
            A, B = (factor.double() for factor in held[module])
            left[tool] += float((D - B @ A).square().sum())
    print(f"{len(shared)} modules", file=sys.stderr)
    return {tool: (value / whole) ** 0.5 for tool, value in left.items()}


def factors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> A and B; both tools have the scaling 1."""
    held = load_file(folder / "adapter_model.safetensors")
    ends = (".lora_A.weight", ".lora_B.weight")
    stems = [name.removesuffix(ends[0]) for name in held if name.endswith(ends[0])]
    return {stem.removeprefix("base_model.model."): (held[stem + ends[0]], held[stem + ends[1]]) for stem in stems}


def reactions(folder: Path) -> tuple[Path, Path]:
    """Base and fine-tune as bare BertModels: the heads of the two are different ones."""
    subprocess.run([sys.executable, ROOT / "examples/models/reactions.py", folder], check=True, capture_output=True)
    for side in ("base", "ft"):
        path = folder / side / "model.safetensors"
        tensors = {name.removeprefix("bert."): value for name, value in load_file(path).items()}
        body = {
            name: value for name, value in tensors.items() if name.startswith(("encoder.", "embeddings.", "pooler."))
        }
        save_file(body, path, {"format": "pt"})
        config = json.loads((folder / side / "config.json").read_text())
        (folder / side / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    return folder / "base", folder / "ft"


def llama(folder: Path, layers: int) -> tuple[Path, Path]:
    """Every linear layer of the second gets 128 directions of sizes i^-0.7, together about 6 % of its norm."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.arange(1, 129).pow(-0.7)

    def noise(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns).normal_(0, 0.02, generator=generator)

    before = {"model.embed_tokens.weight": noise(VOCAB, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    after = dict(before)
    shapes = {"self_attn.q": (HIDDEN, HIDDEN), "self_attn.k": (KV, HIDDEN), "self_attn.v": (KV, HIDDEN)}
    shapes |= {"self_attn.o": (HIDDEN, HIDDEN), "mlp.gate": (INNER, HIDDEN), "mlp.up": (INNER, HIDDEN)}
    shapes |= {"mlp.down": (HIDDEN, INNER)}
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            W, change = noise(rows, columns), (noise(rows, 128) * sizes) @ noise(128, columns)
            key = f"model.layers.{layer}.{name}_proj.weight"
            before[key], after[key] = W, W + change * (0.06 * W.norm() / change.norm())
        for name in ("input_layernorm", "post_attention_layernorm"):
            before[f"model.layers.{layer}.{name}.weight"] = after[f"model.layers.{layer}.{name}.weight"] = torch.ones(
                HIDDEN
            )
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "vocab_size": VOCAB,
        "num_hidden_layers": layers, "intermediate_size": INNER, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    for side, tensors in (("base", before), ("tuned", after)):
        (folder / side).mkdir(parents=True)
        cast = {name: value.bfloat16() for name, value in tensors.items()}
        save_file(cast, folder / side / "model.safetensors", {"format": "pt"})
        (folder / side / "config.json").write_text(json.dumps(config))
    return folder / "base", folder / "tuned"


def table(report: dict[str, Any]) -> str:
    lines = [
        "| pair | whole process | CPU time | times less | peak memory | error of the change |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    floor = {row["pair"]: row["cpu_seconds"] for row in report["results"] if row["tool"].startswith("mergekit")}
    for row in report["results"]:
        faster = floor[row["pair"]] / row["cpu_seconds"]
        lines.append(
            f"| {row['pair']} | {row['tool']} | {row['cpu_seconds']:.1f} s | {faster:.1f} | {row['peak_mb']:.0f} MB | "
            f"{row['error']:.6f} |"
        )
    told = (
        f"Rank {report['rank']}, one thread, mergekit {report['mergekit']}; rxnfp: 72 linear layers of hidden size 256 "
        f"in float32; 1B-shaped: {report['layers']} of the 16 layers of Llama-3.2-1B in bfloat16, vocabulary {VOCAB:,}."
    )
    return "\n".join([*lines, "", told])


if __name__ == "__main__":
    main()
