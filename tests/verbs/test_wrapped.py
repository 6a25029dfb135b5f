"""Checkpoints of models that were saved while something stood around them: no verb works on a part of the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.hub_server import HubServer, Repo
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from ailora_tools import analyze, initialize, inspect_checkpoint, merge
from ailora_tools.errors import CheckpointError

Tensors = dict[str, Tensor]


def llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=False))


def peft(targets: list[str], whole: list[str] | None = None) -> Tensors:
    return get_peft_model(llama(), LoraConfig(target_modules=targets, r=2, modules_to_save=whole)).state_dict()


class Module(nn.Module):
    """What a LightningModule is to the names: the model in an attribute, and more beside it."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        setattr(self, attribute, llama())
        self.head = nn.Linear(4, 4)


def inside(mark: str) -> Tensors:
    """A wrapper around every layer, whose own hooks hide it from a state dict that is taken in full."""
    return {name.replace(".self_attn", f".{mark}.self_attn"): value for name, value in llama().state_dict().items()}


def loralib() -> Tensors:
    """LoRA beside a weight that keeps its name."""
    held = llama().state_dict()
    stem = "model.layers.0.self_attn.q_proj"
    return {**held, f"{stem}.lora_A": torch.ones(2, 48), f"{stem}.lora_B": torch.ones(48, 2)}


WRAPPED: dict[str, tuple[Callable[[], Tensors], str, str]] = {
    "PEFT": (lambda: peft(["q_proj", "v_proj"]), "PEFT", "merge_and_unload"),
    "PEFT elsewhere": (lambda: peft(["up_proj"]), "PEFT", "merge_and_unload"),
    "PEFT, a whole module": (lambda: peft(["up_proj"], ["lm_head"]), "PEFT", "merge_and_unload"),
    "PEFT without its prefix": (
        lambda: {name.removeprefix("base_model.model."): value for name, value in peft(["o_proj"]).items()},
        "PEFT", "merge_and_unload",
    ),
    "loralib": (loralib, "PEFT", "merge_and_unload"),
    "DataParallel": (lambda: nn.DataParallel(llama()).state_dict(), "DDP", r"model\.module\.save_pretrained"),
    "torch.compile": (lambda: torch.compile(llama()).state_dict(), "torch.compile", r"_orig_mod\.save_pretrained"),
    "both": (lambda: nn.DataParallel(torch.compile(llama())).state_dict(), "torch.compile", "_orig_mod"),
    "FSDP": (lambda: inside("_fsdp_wrapped_module"), "FSDP", "full state dict"),
    "checkpoint_wrapper": (lambda: inside("_checkpoint_wrapped_module"), "checkpoint_wrapper", "state_dict"),
    "Fabric": (
        lambda: {f"_forward_module.{name}": value for name, value in llama().state_dict().items()},
        "Lightning Fabric", "_forward_module",
    ),
    "Lightning": (lambda: Module("model").state_dict(), "Lightning", r"module\.model\.save_pretrained"),
    "Lightning, other name": (lambda: Module("net").state_dict(), "Lightning", r"module\.net\.save_pretrained"),
}  # fmt: skip


def adapter(folder: Path) -> Path:
    folder.mkdir()
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {f"{stem}.lora_A.weight": torch.ones(2, 48), f"{stem}.lora_B.weight": torch.ones(48, 2)}
    save_file(pair, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    return folder


VERBS: dict[str, Callable[[Path, Path], object]] = {
    "inspect": lambda model, work: inspect_checkpoint(model),
    "inspect, named": lambda model, work: inspect_checkpoint(
        model, roles=("q",), q_tensor="model.layers.{layer}.self_attn.q_proj.weight"
    ),
    "analyze": lambda model, work: analyze(model, rank=2, output=work / "out"),
    "against": lambda model, work: analyze(plain(work), against=[model], rank=2, output=work / "out"),
    "init": lambda model, work: initialize(model, 2, output=work / "out"),
    "merge": lambda model, work: merge(model, adapter(work / "adapter"), work / "out"),
}
PREFIXED, BY_NAME = ("Lightning", "Lightning, other name"), ("merge", "inspect, named")


def plain(work: Path) -> Path:
    return write_checkpoint(work / "plain", llama_tensors(hidden=48, kv=24))


def write(folder: Path, tensors: Tensors) -> Path:
    return write_checkpoint(folder, {name: value.clone() for name, value in tensors.items()}, num_hidden_layers=2)


# Without the table of types a prefix is only a prefix.
CASES = [(case, verb) for case in WRAPPED for verb in VERBS if case not in PREFIXED or verb not in BY_NAME]


@pytest.mark.parametrize(("case", "verb"), CASES)
def test_wrapped_is_said_with_the_way_out(case: str, verb: str, tmp_path: Path) -> None:
    make, name, way_out = WRAPPED[case]
    model = write(tmp_path / "model", make())
    before = tree(model)
    with pytest.raises(CheckpointError, match=rf"saved while wrapped \(.*{name}.*\n.*{way_out}"):
        VERBS[verb](model, tmp_path)
    assert tree(model) == before and not (tmp_path / "out").exists()


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"an adapter, not a model.*\nGive the model that"):
        inspect_checkpoint(adapter(tmp_path / "adapter"))


def test_wrapped_over_the_hub(hub: HubServer, tmp_path: Path) -> None:
    write(tmp_path / "model", WRAPPED["PEFT"][0]())
    hub.repos["org/model"] = Repo(files=tree(tmp_path / "model"))
    with pytest.raises(CheckpointError, match=r"org/model: saved while wrapped \(PEFT\)"):
        inspect_checkpoint("org/model")


@pytest.mark.parametrize(
    "name", ["base_layer.0.weight", "module.weight", "blocks.0.modules_to_save_more.weight", "model.lora_Apple.weight"]
)
def test_a_name_that_only_resembles_a_wrapper_is_no_wrapper(name: str, tmp_path: Path) -> None:
    """Such as `base_layer` of timm's DLA networks."""
    folder = write_checkpoint(tmp_path, {**llama_tensors(), name: torch.ones(2, 2)})
    assert len(inspect_checkpoint(folder).plan.targets) == 4
