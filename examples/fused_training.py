"""What the gradient mask changes: a few steps on a model with fused projections, with and without it.

    python examples/fused_training.py

A small random GPT-NeoX learns to repeat one line of numbers. Printed is how far W^Q, W^K and W^V of the fused modules
have moved from the original, as a share of their norm: without the mask the rows of W^K move, which nobody asked for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ailora_tools import initialize, mask_fused_gradients
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.matrices.gather import gather
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.selection import Selection

STEPS, RATE = 30, 1e-3


def moved(folder: Path, masked: bool) -> tuple[dict[str, float], float]:
    """Mean relative change of each projection, and the last loss."""
    model = PeftModel.from_pretrained(
        GPTNeoXForCausalLM.from_pretrained(folder), folder / "ailora_init", is_trainable=True
    )
    if masked:
        mask_fused_gradients(model, folder / "ailora_init")
    optimiser = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=RATE)
    line = torch.arange(1, 33)[None]
    for _ in range(STEPS):
        loss = model(input_ids=line, labels=line).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    merged = model.merge_and_unload()
    original = GPTNeoXForCausalLM.from_pretrained(folder.parent / "model")
    changes: dict[str, list[float]] = {"q": [], "k": [], "v": []}
    for target in make_plan(open_checkpoint(folder), Selection(("q", "k", "v"))).targets:
        after, before = (gather(part.get_submodule(target.module).weight.detach(), target.part)
                         for part in (merged, original))  # fmt: skip
        changes[target.role].append(float((after - before).norm() / before.norm()))
    return {role: sum(values) / len(values) for role, values in changes.items()}, float(loss)


def main() -> None:
    """Make the model, initialise, train twice, print."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=64, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=256, max_position_embeddings=64)  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        GPTNeoXForCausalLM(config).save_pretrained(Path(scratch) / "model")
        folder = initialize(Path(scratch) / "model", 8, output=Path(scratch) / "out").folder
        for masked in (False, True):
            changes, loss = moved(folder, masked)
            shown = ", ".join(f"W^{role.upper()} {value:.2e}" for role, value in changes.items())
            print(f"{'with' if masked else 'without'} the mask: {shown}; loss {loss:.3f}")


if __name__ == "__main__":
    main()
