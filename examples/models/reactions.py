"""A real pair of a base and its fine-tunes: the small BERTs that the PyPI package `rxnfp` carries (MIT, IBM).

    pip install --no-deps rxnfp==0.1.0
    python examples/models/reactions.py OUT [--keep-names]

OUT/base is the pre-trained masked-language model of chemical reactions (12 layers, hidden 256), OUT/ft and OUT/ft_10k
are fine-tuned on reaction classes. The names of `ft` lack the prefix "bert."; it is added unless --keep-names is
given. Nothing of the package is imported, and no pickled code runs.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CHECKPOINTS = {"bert_pretrained": "base", "bert_ft": "ft", "bert_ft_10k_25s": "ft_10k"}
CONFIG = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--keep-names"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    spec = importlib.util.find_spec("rxnfp")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("rxnfp is not installed: pip install --no-deps rxnfp==0.1.0")
    source = Path(next(iter(spec.submodule_search_locations))) / "models" / "transformers"
    for name, folder in CHECKPOINTS.items():
        convert(source / name, Path(arguments[0], folder), "--keep-names" in sys.argv)


def convert(source: Path, out: Path, keep_names: bool) -> None:
    state = torch.load(source / "pytorch_model.bin", map_location="cpu", weights_only=True)
    state.pop("cls.predictions.decoder.weight", None)  # the word embeddings once more
    bare = ("embeddings.", "encoder.", "pooler.")
    tensors = {
        f"bert.{name}" if name.startswith(bare) and not keep_names else name: value.clone().contiguous()
        for name, value in state.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    old = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = {"model_type": "bert", **{key: old[key] for key in CONFIG}}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(f"{out}: {sum(value.numel() for value in tensors.values()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
