"""How close base and adapter are to the original at step 0, for each way to keep the base.

    python examples/fidelity.py MODEL [MODEL ...]

The models are taken in bfloat16. Printed is the largest difference of the output over its largest entry, in bfloat16
arithmetic as it would be trained, and, in float32 arithmetic on the same stored numbers, what storage alone costs.
Last, norm(W - (W_res + B A)) / norm(W) of one square W^V, 1024 x 1024 noise, rank 8, and how much of the surgery is in
the stored base.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from ailora_tools import initialize

WAYS = {
    "residual base": {},
    "`--rounding nearest`": {"rounding": "nearest"},
    "`--base-dtype float32`": {"base_dtype": "float32"},
    "`--no-base`": {"no_base": True},
}
RANK = 8


def main() -> None:
    """A table in Markdown."""
    names = [Path(name) for name in sys.argv[1:]]
    heads = [f"{name.name}, {kind}" for name in names for kind in ("bf16", "float32")]
    print(f"| kept as | {' | '.join(heads)} | square W^V | of it in the base |")
    print("| --- |" + " ---: |" * (len(heads) + 2))
    with tempfile.TemporaryDirectory() as scratch:
        sources = [halved(name, Path(scratch) / name.name) for name in names]
        square = noise(Path(scratch) / "square")
        for way, options in WAYS.items():
            cells = [f"{error:.1e}" for source in sources for error in apart(source, options)]
            record = initialize(square, RANK, output=square.parent / "out", overwrite=True, **options).manifest
            assert record is not None
            value = next(module for module in record.modules if module.role == "v")
            kept = "-" if value.survival is None else f"{value.survival:.2f}"
            print(f"| {way} | {' | '.join(cells)} | {value.reconstruction_error:.1e} | {kept} |")


def halved(model: Path, folder: Path) -> Path:
    """The model in bfloat16."""
    shutil.copytree(model, folder)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        cast = {name: value.bfloat16() if value.is_floating_point() else value for name, value in tensors.items()}
        save_file(cast, path, {"format": "pt"})
    return folder


def noise(folder: Path) -> Path:
    """One square W^V and a W^Q that nobody looks at."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    drawn = {
        f"model.layers.0.self_attn.{name}.weight": torch.randn(1024, 1024, generator=generator).mul(0.02).bfloat16()
        for name in ("v_proj",)
    }
    drawn["model.layers.0.self_attn.q_proj.weight"] = drawn["model.layers.0.self_attn.v_proj.weight"].clone()
    save_file(drawn, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def apart(source: Path, options: dict[str, object]) -> list[float]:
    """In bfloat16 and in float32 arithmetic."""
    made = initialize(source, RANK, output=source.parent / "out", overwrite=True, **options)  # type: ignore[arg-type]
    base = source if options.get("no_base") else made.folder
    words = torch.randint(5, 900, (2, 24), generator=torch.Generator().manual_seed(1))
    errors = []
    for dtype in (torch.bfloat16, torch.float32):
        expected = output(load(source, dtype), words)
        model = PeftModel.from_pretrained(load(base, dtype), made.adapter)
        if options.get("no_base"):
            model.load_adapter(made.offset, adapter_name="offset")
            model.base_model.set_adapter(["default", "offset"])
        errors.append(float((output(model, words) - expected).abs().max() / expected.abs().max()))
    return errors


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """With its head, if config.json names one."""
    causal = "ForCausalLM" in (folder / "config.json").read_text(encoding="utf-8")
    kind = AutoModelForCausalLM if causal else AutoModel
    found: torch.nn.Module = kind.from_pretrained(folder, dtype=dtype)
    return found


@torch.no_grad()
def output(model: torch.nn.Module, words: torch.Tensor) -> torch.Tensor:
    """Logits, or the last hidden state of a body, in float64."""
    found: torch.Tensor = model.eval()(input_ids=words)[0]
    return found.double()


if __name__ == "__main__":
    main()
