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
from ..errors import OptionError
from ..output.adapter import write_json
from ..output.atomic import RECORD, making, require_outside

FILE = "bitfit.json"


@dataclass(frozen=True)
class BiasList:
    """Where the list lies, the biases by tensor name, and how many of the model's parameters they hold."""

    folder: Path
    source: str
    biases: tuple[str, ...]
    count: int
    total: int

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints and bitfit.json holds."""
        return {"source": self.source, "count": self.count, "total": self.total, "biases": list(self.biases)}


def bitfit(
    model: str | Path, output: str | Path | None = None, *, overwrite: bool = False, **source: Unpack[SourceOptions]
) -> BiasList:
    """Write bitfit.json, the names of all biases of `model`, and a card; only headers are read.

    Raises OptionError for a model without biases (LLaMA and its kin): there BitFit has nothing to train.
    """
    checkpoint = open_checkpoint(model, **source)
    shapes = {name: info.shape for name, (_, info) in checkpoint.tensors.items()}
    biases = tuple(name for name, shape in shapes.items() if name.rsplit(".", 1)[-1] in _NAMES and len(shape) == 1)
    if not biases:
        raise OptionError(
            f"{checkpoint.location}: none of its {len(shapes)} tensors is a bias, so that BitFit has nothing to train.",
            "Choose a method with an adapter, such as ailora or lora.",
        )
    folder = Path(output or f"{checkpoint.origin.name}-bitfit").expanduser().absolute()
    require_outside(folder, checkpoint.origin)
    count, total = (sum(prod(shapes[name]) for name in names) for names in (biases, shapes))
    found = BiasList(folder, checkpoint.location, biases, count, total)
    with making(folder, overwrite=overwrite) as tree:
        write_json(tree / FILE, found.to_json())
        write_json(tree / RECORD, {"verb": "init", "method": "bitfit", "source": found.source})
        (tree / "README.md").write_text(_card(found), encoding="utf-8")
    return found


_NAMES = ("bias", "beta", "in_proj_bias")  # beta: the bias of a LayerNorm in old checkpoints


def _card(found: BiasList) -> str:
    return f"""# {found.folder.name}

BitFit (arXiv 2106.10199) for {found.source}: {len(found.biases)} biases, {found.count:,} of {found.total:,} parameters
({found.count / found.total:.2%}). There is no adapter; the biases of the model itself are trained:

```python
from ailora_tools import train_biases

trained = train_biases(model, "FOLDER")  # and nothing else; unfreeze a new head afterwards
optimizer = torch.optim.AdamW(trained, lr=1e-3)
```
"""
