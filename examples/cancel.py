"""How exactly the start is taken out of the original: by `attach`, by the frozen adapter, and by a residual base.

    python examples/cancel.py MODEL

MODEL is a causal language model. Printed is the largest difference of the logits at step 0, over the largest logit,
between the model and the same model with its adapters disabled; for the residual base, and the original that is loaded
in the same way. In training mode, as one trains; there is no dropout.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from ailora_tools import attach, initialize

WIDE, HALF = torch.float32, torch.bfloat16
RANK = 8


def nf4(dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` takes for a base in four bits that computes in `dtype`."""
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": bits}


INT8 = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
# dtype of the model, how it is loaded, how the adapters are, and whether autocast to bfloat16 is on
SETTINGS: dict[str, tuple[torch.dtype, dict[str, Any], dict[str, Any], bool]] = {
    "float32": (WIDE, {}, {}, False),
    "bfloat16, adapter in float32": (HALF, {}, {}, False),
    "bfloat16, adapter too": (HALF, {}, {"autocast_adapter_dtype": False}, False),
    "float32 under autocast": (WIDE, {}, {}, True),
    "bfloat16 under autocast": (HALF, {}, {}, True),
    "NF4, float32": (WIDE, nf4(WIDE), {}, False),
    "NF4, bfloat16": (HALF, nf4(HALF), {}, False),
    "NF4, bfloat16 under autocast": (HALF, nf4(HALF), {}, True),
    "INT8, bfloat16": (HALF, INT8, {}, False),
}


def main() -> None:
    """A table in Markdown."""
    source = Path(sys.argv[1])
    disable_progress_bar()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        two = initialize(source, RANK, no_base=True, output=Path(scratch) / "two").folder
        one = initialize(source, RANK, output=Path(scratch) / "one").folder
        print("| the model | `attach` | two adapters | residual base |")
        print("| --- | ---: | ---: | ---: |")
        for name, (dtype, base, adapter, autocast) in SETTINGS.items():
            with torch.autocast("cpu", HALF, enabled=autocast):
                found = [apart(way, source, two, one, dtype, base, adapter) for way in WAYS]
            print(f"| {name} | {' | '.join('0' if error == 0 else f'{error:.1e}' for error in found)} |")


def apart(
    way: Callable[..., PeftModel], source: Path, two: Path, one: Path, dtype: torch.dtype, base: Any, adapter: Any
) -> float:
    """Over the largest logit."""
    model = way(source, two, one, lambda folder: load(folder, dtype, base), adapter)
    found = logits(model)
    if way is residual:
        expected = logits(load(source, dtype, base))
    else:
        with model.disable_adapter():
            expected = logits(model)
    return float((found - expected).abs().max() / expected.abs().max())


def attached(source: Path, two: Path, one: Path, load: Callable[[Path], torch.nn.Module], options: Any) -> PeftModel:
    """The start, taken out where it is computed."""
    model = PeftModel.from_pretrained(load(source), two / "ailora_init", **options)
    attach(model, two / "ailora_init")
    return model


def frozen(source: Path, two: Path, one: Path, load: Callable[[Path], torch.nn.Module], options: Any) -> PeftModel:
    """The start beside a frozen adapter with the other sign."""
    model = PeftModel.from_pretrained(load(source), two / "ailora_init", **options)
    model.load_adapter(two / "ailora_offset", adapter_name="offset", **options)
    model.base_model.set_adapter(["default", "offset"])
    return model


def residual(source: Path, two: Path, one: Path, load: Callable[[Path], torch.nn.Module], options: Any) -> PeftModel:
    """The start on the base that was written without it."""
    return PeftModel.from_pretrained(load(one), one / "ailora_init", **options)


WAYS = (attached, frozen, residual)


def load(folder: Path, dtype: torch.dtype, options: dict[str, Any]) -> torch.nn.Module:
    """A base."""
    found: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    return found


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """In float64."""
    size = model.get_input_embeddings().num_embeddings
    words = torch.randint(5, min(size, 900), (2, 24), generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = model.train()(input_ids=words).logits
    return found.double()


if __name__ == "__main__":
    main()
