"""What a row of the table of architectures is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..matrices.layouts import Layout


@dataclass(frozen=True)
class Count:
    """By which fields of config.json a class counts the layers of a stack.

    fields: names of one number (transformers' `attribute_map` has a second one for some); none: the loader is strict
    and takes no file with further layers. within: the part of config.json that they stand in, `a.b` for one in another.
    otherwise: the fields that hold where none of `fields` is stated.
    """

    fields: tuple[str, ...]
    within: str = ""
    otherwise: tuple[str, ...] = ()


LAYERS = Count(("num_hidden_layers",))
N_LAYER = Count(("num_hidden_layers", "n_layer"))
N_LAYERS = Count(("num_hidden_layers", "n_layers"))
NUM_LAYERS = Count(("num_hidden_layers", "num_layers"))
TEXT_LAYERS = Count(("num_hidden_layers",), "text_config")
VISION_LAYERS = Count(("num_hidden_layers",), "vision_config")
STRICT = Count(())


@dataclass(frozen=True)
class Slot:
    """One kind of attention in a model; `stack` tells several apart ("encoder", "decoder cross", "text").

    count: how its layers are counted, and `inner` what `{inner}` stands for; without it the class itself is asked.
    """

    path: str
    stack: str = ""
    count: Count | None = None
    inner: Count = STRICT


@dataclass(frozen=True)
class Architecture:
    """One family.

    model_types: model_type -> base prefix of its head classes, "" where there is none.
    leaves: role -> possible last parts of the module's name in the checkpoint.
    prefixes: further prefixes under which checkpoints keep the same tower (multimodal models).
    renames: (expression, replacement, first transformers major) from checkpoint path to module path.
    layouts: leaf -> how a tensor of that name holds several projections; without one it is a projection itself.
    unproven: those of the types whose class no test has run, since it cannot be run here.
    """

    family: str
    model_types: Mapping[str, str]
    slots: tuple[Slot, ...]
    leaves: Mapping[str, tuple[str, ...]]
    prefixes: tuple[str, ...] = ()
    renames: tuple[tuple[str, str, int], ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    unproven: frozenset[str] = frozenset()

    def proves(self, model_type: str) -> bool:
        """Whether a test has run the class of this type and seen what the row says of it."""
        of_class = model_type in self.model_types and model_type not in self.unproven
        return of_class and all(layout.proven for layout in self.layouts.values())


def types(prefix: str, names: str) -> dict[str, str]:
    """model_type -> prefix, for names in one string."""
    return dict.fromkeys(names.split(), prefix)


def leaves(q: str, k: str, v: str, *o: str) -> dict[str, tuple[str, ...]]:
    """Names of the four projections where each has a module of its own."""
    return {"q": (q,), "k": (k,), "v": (v,), "o": o}


# Queries go through a latent as well in all but small models; the keys' and values' latent is kv_a_proj_with_mqa.
LATENT_LEAVES = {"q": ("q_b_proj", "q_proj"), "k": ("kv_b_proj",), "v": ("kv_b_proj",), "o": ("o_proj",)}
QKV_PROJ = leaves("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense")


def fused(leaf: str, *o: str) -> dict[str, tuple[str, ...]]:
    """Names where W^Q, W^K and W^V are one tensor."""
    return {"q": (leaf,), "k": (leaf,), "v": (leaf,), "o": o}


DECODER = (Slot("layers.{layer}.self_attn", count=LAYERS),)

# The text model of a multimodal one, opened by itself from the files of the whole.
TEXT_ONLY = ("model.language_model.",)
WITHOUT_TOWER = (r"^model\.language_model\.", "model.", 5)
