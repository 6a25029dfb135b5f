"""What a row of the table of architectures is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..matrices.layouts import GATE_AND_UP, Layout
from ..methods import ATTENTION


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
SHARED = "shared expert"  # in the label of a stack: the MLP beside a mixture's experts


@dataclass(frozen=True)
class Slot:
    """One kind of attention in a model; `stack` tells several apart ("encoder", "decoder cross", "text").

    count: how its layers are counted, and `inner` what `{inner}` stands for; without it the class itself is asked.
    """

    path: str
    stack: str = ""
    count: Count | None = None
    inner: Count = STRICT

    @property
    def layer(self) -> str:
        """The path of the layer itself."""
        end = max(self.path.rfind(word) + len(word) for word in ("{layer}", "{inner}") if word in self.path)
        return self.path[:end]


# Where the MLP lies in a layer, by the names that most families have.
MLP = ("mlp", "feed_forward", "ffn")
# Beside experts that a router chooses, or in their place: an MLP that all tokens pass.
_SHARED = ("mlp.shared_experts", "mlp.shared_expert", "mlp.shared_mlp", "shared_mlp", "feed_forward.shared_expert")
# The names of its matrices, gate being the one that goes through the activation where there are two.
MLP_LEAVES: Mapping[str, tuple[str, ...]] = {
    "gate": ("gate_proj", "gate_up_proj", "w1", "wi_0", "Wi", "input_linear"),
    "up": (
        "up_proj", "gate_up_proj", "w3", "wi_1", "Wi", "input_linear", "fc1", "c_fc", "wi", "fc_in", "dense_h_to_4h",
        "lin1", "intermediate_dense",
    ),
    "down": (
        "down_proj", "w2", "wo", "Wo", "output_linear", "fc2", "c_proj", "fc_out", "dense_4h_to_h", "lin2",
        "output_dense",
    ),
}  # fmt: skip
BERT_MLP = {"up": "intermediate.dense", "down": "output.dense"}  # modules of the layer itself
_MLP_LAYOUTS = {"gate_up_proj": GATE_AND_UP, "Wi": GATE_AND_UP, "input_linear": GATE_AND_UP}


@dataclass(frozen=True)
class Architecture:
    """One family.

    model_types: model_type -> base prefix of its head classes, "" where there is none.
    slots: where attention lies. mlp: where the MLP lies, from its layer on, or by a whole path with `{layer}`.
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
    mlp: tuple[str, ...] = MLP

    def places(self, role: str) -> Iterator[Slot]:
        """Where matrices of the role may lie; those of the MLP once a layer, whatever attentions it has."""
        if role in ATTENTION:
            yield from self.slots
            return
        for slot in self.layers():
            shared = f"{slot.stack} {SHARED}".strip()
            for tail in (*self.mlp, *_SHARED):
                path = tail if "{layer}" in tail else f"{slot.layer}.{tail}".rstrip(".")
                yield replace(slot, path=path, stack=shared if tail in _SHARED else slot.stack)

    def layers(self) -> Iterator[Slot]:
        """The layers themselves, each once."""
        for path, slot in {slot.layer: slot for slot in reversed(self.slots)}.items():
            yield replace(slot, path=path)

    def layout(self, leaf: str) -> Layout | None:
        """How a tensor of that name holds several projections; None where it is one."""
        return self.layouts.get(leaf) or _MLP_LAYOUTS.get(leaf)

    def proves(self, model_type: str) -> bool:
        """Whether a test has run the class of this type and seen what the row says of it."""
        of_class = model_type in self.model_types and model_type not in self.unproven
        return of_class and all(layout.proven for layout in self.layouts.values())


def types(prefix: str, names: str) -> dict[str, str]:
    """model_type -> prefix, for names in one string."""
    return dict.fromkeys(names.split(), prefix)


def leaves(q: str, k: str, v: str, *o: str, **mlp: str) -> dict[str, tuple[str, ...]]:
    """Names of the projections where each has a module of its own; those of the MLP where they are not the usual."""
    return {"q": (q,), "k": (k,), "v": (v,), "o": o, **_mlp(mlp)}


def _mlp(stated: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:
    return {role: (stated[role],) if role in stated else () for role in MLP_LEAVES} if stated else MLP_LEAVES


# Queries go through a latent as well in all but small models; the keys' and values' latent is kv_a_proj_with_mqa.
LATENT_LEAVES = {
    "q": ("q_b_proj", "q_proj"), "k": ("kv_b_proj",), "v": ("kv_b_proj",), "o": ("o_proj",), **MLP_LEAVES,
}  # fmt: skip
QKV_PROJ = leaves("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense")


def fused(leaf: str, *o: str, **mlp: str) -> dict[str, tuple[str, ...]]:
    """Names where W^Q, W^K and W^V are one tensor."""
    return leaves(leaf, leaf, leaf, *o, **mlp)


DECODER = (Slot("layers.{layer}.self_attn", count=LAYERS),)

# The text model of a multimodal one, opened by itself from the files of the whole.
TEXT_ONLY = ("model.language_model.",)
WITHOUT_TOWER = (r"^model\.language_model\.", "model.", 5)
