"""What a start on the grid of NF4 gives back of what four bits cost: QLoRA, LoftQ, and `init --grid`, before training.

    python examples/grid.py MODEL [--rank 16] [--roles q,v] [--rounds 5] [--text editorials] [--tokens 2048]

MODEL is a causal language model with its tokenizer. Every linear layer is in NF4, loaded by bitsandbytes, and the
adapters by PEFT. Printed is the mean Kullback-Leibler divergence of the next word from that of the original in
float32, on editorials of a newspaper, film reviews or word problems (fetched with pip), and the share of plain QLoRA's
that is left.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ailora_tools import initialize
from ailora_tools.output.manifest import read_manifest
from examples.study.texts import rated, word_problems

WINDOW = 256
TEXTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "editorials": lambda cache: (line for _, line in rated(cache, "nytEditorialSnippets")),
    "reviews": lambda cache: (line for _, line in rated(cache, "movieReviewSnippets")),
    "problems": lambda cache: (f"{problem} {answer}" for problem, answer in word_problems(cache)),
}


def words(model: Path, count: int, cache: Path, kind: str) -> Tensor:
    """(windows, 256) of consecutive text."""
    text = cache.read_text() if cache.is_file() else "\n".join(TEXTS[kind](cache))
    ids = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt").input_ids[0]
    return ids[: count // WINDOW * WINDOW].view(-1, WINDOW)


def in_four_bits(folder: Path, adapter: Path | None = None) -> nn.Module:
    """The base in NF4, with the adapter of a start."""
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=bits)
    return base if adapter is None else PeftModel.from_pretrained(base, adapter)


@torch.no_grad()
def likelihoods(model: nn.Module, windows: Tensor) -> Iterator[Tensor]:
    """Log-probabilities, window by window; there is no dropout, and training mode keeps bitsandbytes in float32."""
    for window in windows:
        yield model.train()(window[None]).logits[0].float().log_softmax(-1)


def divergence(original: list[Tensor], model: nn.Module, windows: Tensor) -> float:
    """Mean KL(original || model) a word, in nats."""
    pairs = zip(original, likelihoods(model, windows), strict=True)
    found = [(p.exp() * (p - q)).sum(-1).mean() for p, q in pairs]
    return float(torch.stack(found).mean())


def lossy(W: Tensor) -> Tensor:
    """There and back with bitsandbytes."""
    return bnb.dequantize_4bit(*bnb.quantize_4bit(W.contiguous(), quant_type="nf4", blocksize=64))


def loftq(source: Path, start: Path, folder: Path, rounds: int) -> Path:
    """The same modules and ranks, started by LoftQ (arXiv 2310.08659, algorithm 1): Q first, from W itself."""
    shutil.copytree(start, folder)
    manifest, path = read_manifest(start), folder / "ailora_init/adapter_model.safetensors"
    factors, held = load_file(path), {file.name: load_file(file) for file in source.glob("*.safetensors")}
    for record in manifest.modules:
        W = held[record.file][record.tensor].float()
        B, A = torch.zeros(len(W), record.rank), torch.zeros(record.rank, W.shape[1])
        for _ in range(rounds):
            Q = lossy(W - B @ A)
            U, S, Vh = torch.svd_lowrank(W - Q, record.rank + 8, niter=8)
            B, A = (U * S.sqrt())[:, : record.rank], (S.sqrt()[:, None] * Vh.T)[: record.rank]
        name = f"base_model.model.{record.module}.lora_"
        factors |= {f"{name}A.weight": A.contiguous(), f"{name}B.weight": B.contiguous()}
        held[record.file][record.tensor] = Q.to(held[record.file][record.tensor])
    save_file(factors, path, {"format": "pt"})
    for file, tensors in held.items():
        save_file(tensors, folder / file, {"format": "pt"})
    return folder


def main() -> None:
    """A table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--roles", default="q,v", help="as `init` takes them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", choices=TEXTS, default="editorials")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--cache", type=Path, default=Path("data"), help="where the text is kept, or a file with one")
    asked = parser.parse_args()
    disable_progress_bar()
    logging.disable(logging.WARNING)
    windows, roles = words(asked.model, asked.tokens, asked.cache, asked.text), asked.roles.split(",")
    whole = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32)
    original = list(likelihoods(whole, windows))
    with tempfile.TemporaryDirectory() as scratch:
        made = initialize(
            asked.model, asked.rank, method="pissa", roles=roles, grid="nf4", rounds=asked.rounds,
            output=Path(scratch) / "grid",
        )  # fmt: skip
        ways: dict[str, Callable[[], nn.Module]] = {
            "QLoRA": lambda: in_four_bits(asked.model),
            f"LoftQ, {asked.rounds} rounds": lambda: in_four_bits(
                lq := loftq(asked.model, made.folder, Path(scratch) / "loftq", asked.rounds), lq / "ailora_init"
            ),
            f"init --method pissa --grid nf4 --rounds {asked.rounds}": lambda: in_four_bits(made.folder, made.adapter),
        }
        print(f"| rank {asked.rank}, {asked.roles} | KL to the original | of QLoRA's |\n| --- | ---: | ---: |")
        plain = 0.0
        for name, load in ways.items():
            found = divergence(original, load(), windows)
            plain = plain or found
            print(f"| {name} | {found:.4f} | {found / plain:.3f} |", flush=True)


if __name__ == "__main__":
    main()
