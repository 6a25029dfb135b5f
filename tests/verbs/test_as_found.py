"""Indexes and file names as they are found in the world: what transformers loads is worked on, and told about."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.hub_server import HubServer, Repo
from peft import PeftModel
from safetensors.torch import load_file, save_file

from ailora_tools import AiloraError, analyze, initialize, inspect_checkpoint, merge, verify

INDEX = "model.safetensors.index.json"
Q0 = "model.layers.0.self_attn.q_proj.weight"
IDS = torch.arange(3, 12)[None]
SIZES = {
    "vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama(seed: int = 0) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def load(folder: Path, **options: Any) -> transformers.LlamaForCausalLM:
    model, told = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not told["missing_keys"]
    return model.eval()


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "model", max_shard_size="60KB")
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], None], name: str = INDEX) -> None:
    index = json.loads((folder / name).read_text())
    change(index)
    (folder / name).write_text(json.dumps(index))


def add_tensor(folder: Path, index: dict[str, Any]) -> None:
    shard = folder / min(index["weight_map"].values())
    save_file({**load_file(shard), "mtp.fc.weight": torch.ones(8, 8)}, shard, {"format": "pt"})


# what is odd -> how it comes about, and a word of the notice about it ("": none)
ODD: dict[str, tuple[Callable[[Path, dict[str, Any]], object], str]] = {
    "a name without a tensor": (
        lambda folder, index: index["weight_map"].update({"mtp.fc.weight": min(index["weight_map"].values())}),
        "names 1 tensors that no shard holds: mtp.fc.weight",
    ),
    "a tensor without a name": (add_tensor, "does not name: mtp.fc.weight"),
    "no metadata": (lambda folder, index: index.pop("metadata"), ""),
    "metadata null": (lambda folder, index: index.update(metadata=None), ""),
    "metadata a list": (lambda folder, index: index.update(metadata=[]), ""),
    "the total a text": (lambda folder, index: index["metadata"].update(total_size="1"), ""),
    "the total wrong": (lambda folder, index: index["metadata"].update(total_size=1), ""),
}


@pytest.mark.parametrize("base_dtype", ["keep", "float32"])
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_index_is_worked_with_and_written_right(odd: str, base_dtype: str, sharded: Path) -> None:
    make, words = ODD[odd]
    edit(sharded, lambda index: make(sharded, index))
    before, out = tree(sharded), sharded.parent / "out"
    made = initialize(sharded, 4, base_dtype=base_dtype, output=out)
    assert not words or any(words in text for text in made.operation.plan.notices)
    assert verify(out).holds and tree(sharded) == before
    index = json.loads((out / INDEX).read_text())
    held = {name: path.name for path in out.glob("*.safetensors") for name in load_file(path)}
    assert index["weight_map"] == held and isinstance(index["metadata"], dict)
    assert torch.allclose(logits(PeftModel.from_pretrained(load(out), made.adapter)), logits(llama()), atol=1e-5)
    merge(out, made.adapter, sharded.parent / "merged")
    assert torch.allclose(logits(load(sharded.parent / "merged")), logits(llama()), atol=1e-5)


VERBS: dict[str, Callable[[Path, Path], object]] = {
    "inspect": lambda model, work: inspect_checkpoint(model),
    "analyze": lambda model, work: analyze(model, rank=2, output=work / "out"),
    "analyze --against": lambda model, work: analyze(work / "plain", against=[model], rank=2, output=work / "out"),
    "init": lambda model, work: initialize(model, 2, output=work / "out"),
    "init --no-base": lambda model, work: initialize(model, 2, no_base=True, output=work / "out"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_projection_that_the_index_alone_has_is_an_error(verb: str, sharded: Path) -> None:
    write_checkpoint(sharded.parent / "plain", llama_tensors(hidden=48, kv=24))
    shard = sharded / json.loads((sharded / INDEX).read_text())["weight_map"][Q0]
    save_file({name: value for name, value in load_file(shard).items() if name != Q0}, shard, {"format": "pt"})
    with pytest.raises(AiloraError, match=rf"1 of 4 projections that no shard holds: {Q0} .*\n.*fetch them again"):
        VERBS[verb](sharded, sharded.parent)
    assert not (sharded.parent / "out").exists()
    assert len(inspect_checkpoint(sharded, layers="1").plan.targets) == 2


def test_a_single_file_beside_an_index_is_read_as_transformers_reads_it(sharded: Path) -> None:
    llama(seed=1).save_pretrained(sharded.parent / "other")
    (sharded.parent / "other" / "model.safetensors").rename(sharded / "model.safetensors")
    assert torch.equal(logits(load(sharded)), logits(llama(seed=1)))
    made = initialize(sharded, 4, output=sharded.parent / "out")
    assert any(f"model.safetensors and {INDEX} are both there" in text for text in made.operation.plan.notices)
    assert [path.name for path in made.folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert verify(made.folder).holds
    got = logits(PeftModel.from_pretrained(load(made.folder), made.adapter))
    assert torch.allclose(got, logits(llama(seed=1)), atol=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_the_weights_that_the_config_names_are_read(name: str, sharded: Path) -> None:
    """transformers_weights, which transformers obeys before it looks at names."""
    llama(seed=1).save_pretrained(sharded.parent / "other")
    (sharded.parent / "other" / "model.safetensors").rename(sharded / "model.safetensors")
    edit(sharded, lambda config: config.update(transformers_weights=name), "config.json")
    checkpoint = inspect_checkpoint(sharded).checkpoint
    assert (checkpoint.index_name == INDEX) == (name == INDEX)
    edit(sharded, lambda config: config.update(transformers_weights="gone.safetensors"), "config.json")
    with pytest.raises(AiloraError, match=r"transformers_weights names 'gone\.safetensors'"):
        inspect_checkpoint(sharded)


# ---- variants


@pytest.mark.parametrize("size", ["60KB", "1GB"])
@pytest.mark.parametrize("base_dtype", ["keep", "float32"])
def test_an_only_variant_goes_through_life_under_its_names(size: str, base_dtype: str, tmp_path: Path) -> None:
    model = llama().half()
    model.save_pretrained(tmp_path / "model", variant="fp16", max_shard_size=size)
    made = initialize(tmp_path / "model", 4, base_dtype=base_dtype, output=tmp_path / "out")
    assert any("only the variant 'fp16'" in text for text in made.operation.plan.notices)
    weights = {path.name for path in (tmp_path / "model").glob("*.safetensors*")}
    assert {path.name for path in made.folder.glob("*.safetensors*")} == weights
    assert verify(made.folder).holds
    wanted = logits(model.float())
    base = load(made.folder, variant="fp16", dtype=torch.float32)
    assert torch.allclose(logits(PeftModel.from_pretrained(base, made.adapter)), wanted, atol=2e-3)
    merge(made.folder, made.adapter, tmp_path / "merged")
    assert torch.allclose(logits(load(tmp_path / "merged", variant="fp16", dtype=torch.float32)), wanted, atol=2e-3)


def test_of_several_variants_the_one_that_is_given_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    llama(seed=1).save_pretrained(folder, variant="ema")
    llama().save_pretrained(folder, variant="fp16", max_shard_size="60KB")
    with pytest.raises(AiloraError, match=r"several variants .*\nGive the one that is meant as MODEL"):
        inspect_checkpoint(folder)
    index = folder / "model.safetensors.index.fp16.json"
    made = initialize(index, 4, output=tmp_path / "out")
    assert verify(made.folder).holds and not list(made.folder.glob("*ema*"))
    assert torch.allclose(logits(PeftModel.from_pretrained(load(made.folder, variant="fp16"), made.adapter)),
                          logits(llama()), atol=1e-5)  # fmt: skip
    assert inspect_checkpoint(folder / "model.ema.safetensors").checkpoint.variant == "ema"


def test_the_plain_weights_come_before_every_variant(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    llama(seed=1).save_pretrained(folder, variant="fp16", max_shard_size="60KB")
    llama().save_pretrained(folder)
    made = initialize(folder, 4, output=tmp_path / "out")
    assert verify(made.folder).holds
    assert [path.name for path in made.folder.glob("*.safetensors*")] == ["model.safetensors"]


def test_diffusers_takes_the_index_before_the_single_file(tmp_path: Path) -> None:
    stem, shard = "diffusion_pytorch_model", "diffusion_pytorch_model-00001-of-00001.safetensors"
    tensors = llama_tensors()
    write_checkpoint(tmp_path, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / shard)
    save_file(llama_tensors(seed=1), tmp_path / f"{stem}.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (tmp_path / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    found = inspect_checkpoint(tmp_path)
    assert list(found.checkpoint.headers) == [shard]
    assert any("as diffusers does" in text for text in found.plan.notices)


# ---- what has the name of a file and is none


def _link(path: Path) -> None:
    path.symlink_to("../../blobs/0123abcd")


NO_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "broken link": (_link, r"a link to \.\./\.\./blobs/0123abcd, which is not there"),
    "folder": (Path.mkdir, "a folder"),
    "pipe": (os.mkfifo, "a pipe or a device"),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "shard", INDEX])
def test_what_is_no_file_is_called_what_it_is(name: str, kind: str, sharded: Path) -> None:
    """As in a half-empty cache of the Hub, where the links are there and what they lead to is not."""
    make, words = NO_FILES[kind]
    if name == "model.safetensors":
        write_checkpoint(sharded.parent / "single", llama_tensors())
        sharded = sharded.parent / "single"
    path = min(sharded.glob("*-of-*")) if name == "shard" else sharded / name
    path.unlink()
    make(path)
    with pytest.raises(AiloraError, match=rf"{path.name}.*{words}") as caught:
        inspect_checkpoint(sharded)
    assert "fetch the" in caught.value.hint


def test_a_companion_that_is_no_file_is_told(sharded: Path) -> None:
    _link(sharded / "tokenizer.json")
    told: list[str] = []

    class Listening:
        def notice(self, text: str) -> None:
            told.append(text)

        def start(self, *_: object) -> None: ...

        def advance(self, *_: object) -> None: ...

    initialize(sharded, 4, output=sharded.parent / "out", progress=Listening())  # type: ignore[arg-type]
    assert any("tokenizer.json (a link to ../../blobs/0123abcd" in text for text in told)


# ---- over the Hub


def test_the_same_over_the_hub(hub: HubServer, tmp_path: Path) -> None:
    llama().half().save_pretrained(tmp_path / "model", variant="fp16", max_shard_size="60KB")
    index = "model.safetensors.index.fp16.json"
    edit(tmp_path / "model", lambda held: held["weight_map"].update(ghost=min(held["weight_map"].values())), index)
    hub.repos["org/model"] = Repo(files=tree(tmp_path / "model"))
    made = initialize("org/model", 4, output=tmp_path / "out")
    told = " ".join(made.operation.plan.notices)
    assert "only the variant 'fp16'" in told and "no shard holds: ghost" in told
    assert verify(made.folder, source="org/model").holds
    assert load(made.folder, variant="fp16") is not None
