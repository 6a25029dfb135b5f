"""`init --method bitfit`: no adapter, only the list of biases to train, and how to train those alone.

BitFit (Ben Zaken, Ravfogel and Goldberg, arXiv 2106.10199): every bias of the model, and a new head, are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Unpack

from ..checkpoint.index import open_checkpoint
from ..checkpoint.source import SourceOptions
from ..display.shown import shows_progress
from ..errors import OptionError
from ..methods import BITFIT
from ..output.atomic import Output, making, require_possible
from ..output.cards.compose import front_matter, with_source
from ..output.cards.front import joined
from ..output.cards.source import Source, source_of_model
from ..output.loading import Loader, absolute, find_loader, literal
from ..output.names import BIAS_LIST, CARD
from ..output.place import output_folder
from ..output.result import write_result
from ..output.spans import write_json, write_text
from ..progress import Progress, heard
from .result import Result


@dataclass(frozen=True, repr=False)
class BiasList(Result):
    """Where the list lies, the biases by tensor name, and how many of the model's parameters they hold."""

    folder: Path
    source: str
    biases: tuple[str, ...]
    count: int
    total: int

    _columns = ("bias",)

    def told(self) -> str:
        """Of which model, how many, and where the list lies."""
        return (
            f"of {self.source}: {len(self.biases)} biases, {self.count:,} of {self.total:,} parameters, {self.folder}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One record a bias."""
        return [{"bias": name} for name in self.biases]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: bitfit.json, and where it lies."""
        return {"folder": str(self.folder), **self.contents()}

    def contents(self) -> dict[str, Any]:
        """What bitfit.json holds."""
        return {"source": self.source, "count": self.count, "total": self.total, "biases": list(self.biases)}


@shows_progress
def bitfit(
    model: str | Path,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | bool | None = None,
    **source: Unpack[SourceOptions],
) -> BiasList:
    """Write bitfit.json, the names of all biases of `model`, and a card (not with `dry_run`); only headers are read.

    Raises OptionError for a model without biases (LLaMA and its kin): there BitFit has nothing to train.

    >>> found = bitfit("encoder", output="biases")
    >>> found.biases[0]
    'bert.embeddings.LayerNorm.bias'
    """
    progress, checkpoint = heard(progress), open_checkpoint(model, **source)
    shapes = {name: stored.shape for name, stored in checkpoint.tensors.items() if stored.dtype not in _BUFFERS}
    biases = tuple(name for name, shape in shapes.items() if is_bias(name) and len(shape) == 1)
    if not biases:
        raise OptionError(
            f"{checkpoint.location}: none of its {len(shapes)} tensors is a bias, so that BitFit has nothing to train.",
            "Choose a method with an adapter, such as ailora or lora.",
        )
    folder = output_folder(output, f"{checkpoint.origin.name}-bitfit", [checkpoint.origin], progress)
    count, total = (sum(prod(shapes[name]) for name in names) for names in (biases, shapes))
    found = BiasList(folder, checkpoint.location, biases, count, total)
    out = Output(folder, "bitfit", overwrite=overwrite, force=force)
    if dry_run:
        require_possible(out)
        return found
    loader = find_loader(checkpoint.config, absolute(checkpoint.origin), checkpoint.headers, {}, residual=False)
    original = source_of_model(checkpoint.files)
    for text in original.notices:
        progress.notice(text)
    with making(out) as tree:
        write_json(tree / BIAS_LIST, found.contents())
        write_text(tree / CARD, _card(found, loader, original))
        write_result(tree, {"verb": "init", "method": "bitfit", "source": found.source})
    return found


_BUFFERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")  # positions and masks, which nothing trains


def is_bias(name: str) -> bool:
    """By the last part of the tensor's name: bias, q_bias, in_proj_bias, or beta, that of LayerNorm in old files."""
    last = name.rsplit(".", 1)[-1]
    return last.endswith("bias") or last == "beta"


def _card(found: BiasList, loader: Loader, original: Source) -> str:
    remark = f"{loader.remark}\n\n" if loader.remark else ""
    imports = "\n".join(dict.fromkeys(["import torch", *loader.imports, "from ailora_tools import train_biases"]))
    load = f"model = {loader.call}\n" if loader.call else ""
    front = front_matter(original, None, None, [BITFIT], beside=False)
    text = f"""# {found.folder.name}

BitFit (arXiv 2106.10199) for {found.source}: {len(found.biases)} biases, {found.count:,} of {found.total:,} parameters
({found.count / found.total:.2%}). There is no adapter; the biases of the model itself are trained:

{remark}```python
{imports}

{load}trained = train_biases(model, {literal(str(found.folder))})  # and nothing else; unfreeze a new head afterwards
optimizer = torch.optim.AdamW(trained, lr=1e-3)
```
"""
    return with_source(joined(front, text), original)
