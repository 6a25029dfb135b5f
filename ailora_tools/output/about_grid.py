"""What is told of a residual on the grid of four bits: notices of `init`, and a part of the card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..methods import SURVIVAL_WANTED
from .manifest import Manifest, ModuleRecord

ON_ORIGINAL = """
On the original the result of `convert` is the trained model but for what the grid took from the base, which is there
again; what `merge` writes is the trained model itself.
"""


def about_grid(records: Sequence[ModuleRecord]) -> Iterator[str]:
    """What the grid took of the surgery, and of the gain over quantising W itself."""
    found = [(one, one.grid_error, one.plain_error) for one in records]
    held = [(one, error / plain) for one, error, plain in found if error is not None and plain]
    for rule in dict.fromkeys(one.rule for one, _ in held):
        shares = sorted(share for one, share in held if one.rule == rule)
        lost = sorted(one.survival for one, _ in held if one.rule == rule and one.survival is not None)
        yield (
            f"on the grid the error of {rule} is {_span(shares)} of that of W itself ({len(shares)} matrices)"
            + (f"; of what was moved {_span(lost)} survives" if lost and lost[0] < SURVIVAL_WANTED else "")
        )


def about_original(manifest: Manifest) -> Iterator[str]:
    """What an adapter for the original is not, where training went on with a base on a grid."""
    errors = [one.grid_error for one in manifest.modules if one.grid_error is not None]
    if errors:
        yield (
            f"on the original the result is the trained model but for what {manifest.settings.get('grid')} took from "
            f"the base, up to {max(errors):.1%} of a matrix; `ailora-tools merge DIR TRAINED` is that model itself"
        )


def _span(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.3f}", f"{values[-1]:.3f}"
    return low if low == high else f"{low} to {high}"


def grid_section(kind: str, records: Sequence[ModuleRecord], call: str | None) -> str:
    """How to load the base so that training computes with the very numbers of its files."""
    ratios = [one.grid_error / one.plain_error for one in records if one.grid_error is not None and one.plain_error]
    told = f"\n(relative to what it takes from the originals themselves: {_span(sorted(ratios))})" if ratios else ""
    base = f"base = {call[:-1]}, quantization_config=bits)" if call and call.endswith(")") else "# ... of your own code"
    return f"""## In four bits

The touched matrices lie on the {kind.upper()} grid of bitsandbytes, in blocks of 64: loading in four bits gives the
numbers of the files bit for bit. Base and adapter are the original but for what the grid takes{told}.
All other linear layers lose what {kind.upper()} costs them. For QLoRA load the base like this, the adapter as above:

    from transformers import BitsAndBytesConfig

    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{kind}", bnb_4bit_compute_dtype="bfloat16")
    {base}

`bnb_4bit_use_double_quant=True` rounds the factors of the blocks once more, by 0.6 % of the norm of each matrix: then
they are no longer those of the files, which `merge` folds the trained adapter into.
"""
