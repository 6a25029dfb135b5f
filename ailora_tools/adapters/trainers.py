"""An adapter in the words of other trainers: names, orientation, row order and scaling. Pure, tensors in and out.

torchtune: `layers.N.attn.q_proj.lora_a.weight`; rotary halves of Llama's and Gemma's W^Q and W^K are interleaved there
(torchtune/models/convert_weights.py). mlx-lm: lora_a (in, r), lora_b (r, out), one rank and one scale for all modules
(mlx_lm/tuner/lora.py). diffusers: PEFT's names behind the component's, PEFT's config in the header
(diffusers/loaders/peft.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, TargetError, listed
from ..matrices.heads import head_counts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """A (r, in) and B (out, r) of one module as PEFT holds them, and what PEFT multiplies B A with."""

    A: Tensor
    B: Tensor
    scaling: float


@dataclass(frozen=True)
class Export:
    """What is written: the tensors, the header's metadata, and config files by name, .json or .yaml."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    configs: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Context:
    """What an adapter does not say itself: config.json of its model and where that is, the component of a pipeline,
    PEFT's config, and the folder that is written."""

    model: Mapping[str, Any]
    base: str
    component: str
    peft: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Trainer:
    """One target of `export`: the file it reads, how that is made, and what the user does with it there."""

    name: str
    file: str
    make: Callable[[Mapping[str, Pair], Context], Export]
    load: Callable[[Context], str]


TORCHTUNE_WEIGHTS, MLX_WEIGHTS = "adapter_model.pt", "adapters.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
MLX_SETTINGS = "lora_config.yaml"
COMPONENTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2")
_WIDER = "Save the adapter in a wider type: `ailora-tools convert` has --dtype, trainers have options of their own."
_ROTATED = {"llama", "mistral", "gemma", "gemma2"}
_STRAIGHT = {"qwen2", "qwen3"}
_TORCHTUNE = re.compile(r"(?:model\.)?layers\.(\d+)\.(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)")
_TORCHTUNE_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "output_proj"}
_OF_TORCHTUNE = re.compile(r"layers\.(\d+)\.(attn|mlp)\.(\w+)\.lora_([ab])\.weight")
_PEFT_NAMES = {
    "attn": {name: f"self_attn.{role}_proj" for role, name in _TORCHTUNE_NAMES.items()},
    "mlp": {"w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"},
}
_TO_TORCHTUNE = {path: (part, name) for part, names in _PEFT_NAMES.items() for name, path in names.items()}
METADATA = "lora_adapter_metadata"  # of the header, diffusers/loaders/lora_base.py


def torchtune(pairs: Mapping[str, Pair], context: Context) -> Export:
    """torchtune's own keys; TargetError for models whose row order is not known here."""
    rotates = _rotates(context.model)
    rank, evened = _evened(pairs)
    tensors: dict[str, Tensor] = {}
    names: dict[str, set[str]] = {"attn": set(), "mlp": set()}
    for module, pair in evened.items():
        found = _TORCHTUNE.fullmatch(module)
        if found is None:
            raise TargetError(f"{module}: torchtune has no such module; only self_attn and mlp can be exported.")
        part, name = _TO_TORCHTUNE[found[2]]
        rotated = rotates and name in ("q_proj", "k_proj")
        B = _interleave(pair.B, _heads(context.model, name[0], module, pair.B)) if rotated else pair.B
        stem = f"layers.{found[1]}.{part}.{name}"
        tensors |= {f"{stem}.lora_a.weight": pair.A, f"{stem}.lora_b.weight": B.contiguous()}
        names[part].add(name)
    if names["mlp"] and (lacking := _PEFT_NAMES["mlp"].keys() - names["mlp"]):
        raise TargetError(
            f"torchtune adapts all of an MLP or nothing of it, and the adapter has no {', '.join(sorted(lacking))}.",
            "Start from all of gate, up and down, or from none.",
        )
    settings = {"lora_attn_modules": sorted(names["attn"]), "apply_lora_to_mlp": bool(names["mlp"]),
                "apply_lora_to_output": False,
                "lora_rank": rank, "lora_alpha": rank, "lora_dropout": 0.0}  # fmt: skip
    return Export(tensors, {}, {"torchtune_model.json": {"model": settings}})


def peft_rows(
    state: Mapping[str, Tensor], model: Mapping[str, Any], where: str
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """torchtune's tensors under PEFT's module paths, the rows of B in the order of the checkpoint: module -> "A"
    (r, in) and "B" (out, r). `model` is its config.json, `where` the file. TargetError for what is no such tensor."""
    rotates = _rotates(model)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        found = _OF_TORCHTUNE.fullmatch(key)
        name = _PEFT_NAMES[found[2]].get(found[3]) if found else None
        if found is None or name is None:
            raise TargetError(
                f"{where}: {key} cannot be read: only lora_a and lora_b of attn and mlp.",
                "Use the merged checkpoint that torchtune's recipe saves beside it.",
            )
        module, role = f"model.layers.{found[1]}.{name}", found[3][0]
        turned = rotates and found[2] == "attn" and role in "qk" and found[4] == "b"
        rows = _straighten(value, _heads(model, role, module, value)) if turned else value
        pairs.setdefault(module, {})[found[4].upper()] = rows
    return pairs


def _rotates(model: Mapping[str, Any]) -> bool:
    """Whether torchtune has the rows of W^Q and W^K in another order than the checkpoint of this config.json."""
    kind = model.get("model_type")
    if not isinstance(kind, str) or kind not in _ROTATED | _STRAIGHT:
        raise TargetError(
            f"model type {kind!r}: torchtune's row order is known here for {', '.join(sorted(_ROTATED | _STRAIGHT))}.",
            "Name the model that the adapter is for with --base, or train with PEFT.",
        )
    return kind in _ROTATED


def _heads(config: Mapping[str, Any], role: str, module: str, B: Tensor) -> int:
    """Heads in the rows of B; TargetError where config.json does not state them, or they do not divide the rows."""
    try:
        queries, keys = head_counts(config)
    except (KeyError, ValueError) as error:
        fault = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise TargetError(
            f"the model's config.json does not tell how many heads there are: {fault}.",
            "Name the model that the adapter is for with --base, or restore its config.json.",
        ) from None
    heads = queries if role == "q" else keys
    if len(B) % (2 * heads):
        raise TargetError(
            f"{module}: {len(B)} rows cannot be {heads} heads of two rotary halves, as the model's config.json has it.",
            "The config.json belongs to another model: name the right one with --base.",
        )
    return heads


def _interleave(B: Tensor, heads: int) -> Tensor:
    """Rows (head, half, pair) -> (head, pair, half): rotary pairs stand side by side in torchtune."""
    rows, rank = B.shape
    return B.view(heads, 2, rows // heads // 2, rank).transpose(1, 2).reshape(rows, rank)


def _straighten(B: Tensor, heads: int) -> Tensor:
    """The way back of `_interleave`."""
    rows, rank = B.shape
    return B.view(heads, rows // heads // 2, 2, rank).transpose(1, 2).reshape(rows, rank)


def mlx(pairs: Mapping[str, Pair], context: Context) -> Export:
    """mlx-lm's arrays and config; whole module paths as keys, so that exactly these modules are adapted. The YAML is
    for mlx_lm.lora, which reads no config beside the weights it resumes from and would take settings of its own."""
    rank, evened = _evened(pairs)
    tensors: dict[str, Tensor] = {}
    for module, pair in evened.items():
        tensors |= {f"{module}.lora_a": pair.A.T.contiguous(), f"{module}.lora_b": pair.B.T.contiguous()}
    layers = {found[1] for module in pairs if (found := re.search(r"\.(\d+)\.", module))}
    parameters = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(pairs)}
    config = {"fine_tune_type": "lora", "num_layers": len(layers), "lora_parameters": parameters}
    start = {**config, "resume_adapter_file": str(context.folder / MLX_WEIGHTS)}
    return Export(tensors, {"format": "mlx"}, {"adapter_config.json": config, MLX_SETTINGS: start})


def _load_mlx(context: Context) -> str:
    settings = quote(str(context.folder / MLX_SETTINGS))
    return f"mlx_lm.lora --train --model {quote(context.base)} --config {settings} --data DATA --adapter-path TRAINED"


def diffusers(pairs: Mapping[str, Pair], context: Context) -> Export:
    """PEFT's tensors behind the component's name, with the LoraConfig in the header: without it alpha is guessed."""
    prefix = context.component
    if not prefix:
        raise TargetError(
            "diffusers names a LoRA after the component of the pipeline it belongs to.",
            "Say which: --component unet, transformer or text_encoder.",
        )
    tensors: dict[str, Tensor] = {}
    for module, pair in pairs.items():
        tensors |= {f"{prefix}.{module}.lora_A.weight": pair.A, f"{prefix}.{module}.lora_B.weight": pair.B}
    kept = ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "bias",
            "init_lora_weights", "peft_type", "base_model_name_or_path")  # fmt: skip
    stated = {f"{prefix}.{key}": context.peft[key] for key in kept if key in context.peft}
    text = json.dumps(stated, indent=2, sort_keys=True, allow_nan=False)
    return Export(tensors, {"format": "pt", METADATA: text}, {})


def _load_diffusers(context: Context) -> str:
    folder, prefix = json.dumps(str(context.folder)), json.dumps(context.component)
    return f'{context.component}.load_lora_adapter({folder}, prefix={prefix}, weight_name="{DIFFUSERS_WEIGHTS}")'


def _load_torchtune(context: Context) -> str:
    return (
        f"lora_weights_state_dict=torch.load({json.dumps(str(context.folder / TORCHTUNE_WEIGHTS))}) in `setup` of a "
        "copy of the recipe (tune cp): torchtune's own would start a new adapter"
    )


def _evened(pairs: Mapping[str, Pair]) -> tuple[int, dict[str, Pair]]:
    """The largest rank, and all pairs at it with scaling 1: filled up with zeros, which also get no part in B A."""
    from ..linalg.lowrank import filled

    rank = max(len(pair.A) for pair in pairs.values())
    sides = {module: filled(pair.A, _scaled(pair, module), rank) for module, pair in pairs.items()}
    return rank, {module: Pair(A, B, 1.0) for module, (A, B) in sides.items()}


def _scaled(pair: Pair, module: str) -> Tensor:
    """s B in the dtype of B; NumericalError where that cannot hold it."""
    from ..linalg.finite import stored

    wide = pair.B if pair.B.dtype.itemsize > 4 else pair.B.float()
    return stored(wide * pair.scaling, pair.B.dtype, f"{module}, lora_B times its scaling", _WIDER)


TRAINERS = {
    row.name: row
    for row in (
        Trainer("torchtune", TORCHTUNE_WEIGHTS, torchtune, _load_torchtune),
        Trainer("mlx", MLX_WEIGHTS, mlx, _load_mlx),
        Trainer("diffusers", DIFFUSERS_WEIGHTS, diffusers, _load_diffusers),
    )
}


def find_trainer(name: str) -> Trainer:
    """The row; OptionError for one that is not there."""
    if name not in TRAINERS:
        raise OptionError(f"--to {name!r}: expected one of {listed(sorted(TRAINERS), 9)}.")
    return TRAINERS[name]
