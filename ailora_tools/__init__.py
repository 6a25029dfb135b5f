"""Start LoRA adapters from the weights: principal components of W^Q, minor components of W^V (arXiv 2510.08034).

The story, top to bottom: `checkpoint` reads safetensors headers and, one by one, the matrices that `targets` says
are W^Q and W^V; `methods` says which singular components each gives to its adapter, `linalg` finds them, and
`surgery` splits the matrix. `output` writes the adapter and the source's shards with only those matrices
replaced. `metrics` describes what a spectrum or a change is like, and `report` says it in sentences and figures.
`verbs` tells these steps as `inspect`, `analyze`, `init`, `verify`, `convert`, `merge`, `extract` and `export`, and
shares what they wrote (`push`, `relink`); `cli` puts them on the command line. Nothing ever builds the model, and
memory holds a few matrices whatever its size.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .errors import AiloraError as AiloraError
    from .training.attach import attach as attach
    from .training.biases import train_biases as train_biases
    from .training.decay import decay_to_start as decay_to_start
    from .training.groups import freeze_a as freeze_a
    from .training.groups import freeze_b as freeze_b
    from .training.groups import lr_groups as lr_groups
    from .training.masks import mask_fused_gradients as mask_fused_gradients
    from .training.residual import Residualized as Residualized
    from .training.residual import residualize as residualize
    from .training.start import check_start as check_start
    from .verbs.analyze import Analysis as Analysis
    from .verbs.analyze import analyze as analyze
    from .verbs.bitfit import BiasList as BiasList
    from .verbs.bitfit import bitfit as bitfit
    from .verbs.convert import Conversion as Conversion
    from .verbs.convert import convert as convert
    from .verbs.export import Exported as Exported
    from .verbs.export import export as export
    from .verbs.extract import Extraction as Extraction
    from .verbs.extract import extract as extract
    from .verbs.initialization import Initialization as Initialization
    from .verbs.initialize import initialize as initialize
    from .verbs.inspect import Inspection as Inspection
    from .verbs.inspect import inspect_checkpoint as inspect_checkpoint
    from .verbs.merge import Merge as Merge
    from .verbs.merge import merge as merge
    from .verbs.push import Push as Push
    from .verbs.push import push as push
    from .verbs.relink import Relink as Relink
    from .verbs.relink import relink as relink
    from .verbs.report import render_report as render_report
    from .verbs.verify import Verification as Verification
    from .verbs.verify import verify as verify

_HOMES = {
    "AiloraError": ".errors",
    "Analysis": ".verbs.analyze",
    "analyze": ".verbs.analyze",
    "render_report": ".verbs.report",
    "Conversion": ".verbs.convert",
    "convert": ".verbs.convert",
    "Exported": ".verbs.export",
    "export": ".verbs.export",
    "Extraction": ".verbs.extract",
    "extract": ".verbs.extract",
    "Initialization": ".verbs.initialization",
    "initialize": ".verbs.initialize",
    "attach": ".training.attach",
    "decay_to_start": ".training.decay",
    "mask_fused_gradients": ".training.masks",
    "lr_groups": ".training.groups",
    "freeze_a": ".training.groups",
    "freeze_b": ".training.groups",
    "train_biases": ".training.biases",
    "check_start": ".training.start",
    "BiasList": ".verbs.bitfit",
    "bitfit": ".verbs.bitfit",
    "Merge": ".verbs.merge",
    "merge": ".verbs.merge",
    "Push": ".verbs.push",
    "push": ".verbs.push",
    "Relink": ".verbs.relink",
    "relink": ".verbs.relink",
    "Residualized": ".training.residual",
    "residualize": ".training.residual",
    "Inspection": ".verbs.inspect",
    "inspect_checkpoint": ".verbs.inspect",
    "Verification": ".verbs.verify",
    "verify": ".verbs.verify",
}
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    """What completion offers: the public names, though none of them is loaded yet."""
    return [*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: importing the package stays fast and needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
