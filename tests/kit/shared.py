"""A tiny real Llama on the Hub of the tests, what is made of it, and another machine that has only the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ailora_tools import convert, initialize, merge
from kit.checkpoints import tree
from kit.hub_server import HubServer, Repo

SOURCE, BASE, PLAIN = "org/model", "me/start", "me/plain"
WORDS = torch.arange(12).reshape(2, 6)

# Loads what was pushed, trains it a little, and leaves the outputs, the start as files, and the trained adapter.
ELSEWHERE = """
import sys, torch
from huggingface_hub import snapshot_download
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

words = torch.arange(12).reshape(2, 6)
base = AutoModelForCausalLM.from_pretrained("me/start").eval()
model = PeftModel.from_pretrained(base, "me/start", subfolder="ailora_init", is_trainable=True)
config = PeftConfig.from_pretrained("me/start", subfolder="ailora_init")
named = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, revision=config.revision)
assert all(torch.equal(mine, other) for mine, other in zip(
    named.state_dict().values(), AutoModelForCausalLM.from_pretrained("me/start").state_dict().values(), strict=True))
with torch.no_grad():
    torch.save(model(words).logits, "start.pt")
optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.5)
for _ in range(3):
    optimizer.zero_grad()
    model(words, labels=words).loss.backward()
    optimizer.step()
model.save_pretrained("trained")
with torch.no_grad():
    torch.save(model(words).logits, "trained.pt")
snapshot_download("me/start", local_dir="start")
"""


@dataclass(frozen=True)
class Made:
    """The source as a folder, and what was made of it: by its name on the Hub and by its path here."""

    model: Path
    start: Path
    local: Path
    two: Path
    plain: Path
    merged: Path


def save_model(folder: Path) -> Path:
    """A tiny Llama in five shards, two of which hold neither W^Q nor W^V."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="30KB")
    return folder


def make(root: Path, hub: HubServer) -> Made:
    """One of each folder that can be pushed."""
    model = save_model(root / "model")
    hub.repos[SOURCE] = Repo(tree(model))
    start = initialize(SOURCE, rank=2, output=root / "start").folder
    local = initialize(model, rank=2, output=root / "local").folder
    two = initialize(model, rank=2, no_base=True, output=root / "two").folder
    plain = convert(start / "ailora_init", start, root / "plain").folder
    merged = merge(start, start / "ailora_init", root / "merged").folder
    hub.reset()
    return Made(model, start, local, two, plain, merged)


def elsewhere(folder: Path, hub: HubServer) -> None:
    """Run ELSEWHERE in a folder of its own, with an empty cache: of this machine it knows the login alone."""
    folder.mkdir()
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_TOKEN": hub.token, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
