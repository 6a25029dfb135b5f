"""What the card and the terminal say about loading: the class, the place, and what nobody can know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.adapters import near
from kit.cards import card_blocks, run_card
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.families import FAMILIES, build, output
from transformers import BertForMaskedLM

from ailora_tools import bitfit, initialize
from ailora_tools.checkpoint.files import Origin
from ailora_tools.cli.group import main
from ailora_tools.errors import TargetError
from ailora_tools.output.loading import find_loader, literal

HERE = Origin("/models/it")
BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}


def call(config: dict[str, object], place: Origin = HERE, shard: str = "model.safetensors", **dtypes: str) -> str:
    return str(find_loader(config, place, [shard], dtypes, residual=True).call)


def test_the_code_on_the_terminal_runs_as_it_stands(tmp_path: Path) -> None:
    model = build("bert with a head")
    model.save_pretrained(tmp_path / "source")
    expected = output(model, FAMILIES["bert with a head"].inputs())
    folder = tmp_path / f"it's {'long ' * 30}"
    done = CliRunner().invoke(main, ["init", str(tmp_path / "source"), "--rank", "3", "-o", str(folder)])
    place: dict[str, object] = {}
    exec(done.output[done.output.index("from peft") :], place)
    assert type(place["base"]) is BertForMaskedLM
    assert near(output(place["model"].eval(), FAMILIES["bert with a head"].inputs()), expected)  # type: ignore[attr-defined]


def test_a_card_whose_folder_lost_its_base_raises(tmp_path: Path) -> None:
    """The original's weights in its place: PEFT says nothing."""
    build("llama").save_pretrained(tmp_path / "source")
    initialize(tmp_path / "source", 3, output=tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes((tmp_path / "source" / "model.safetensors").read_bytes())
    with pytest.raises(TargetError, match="the original weights"):
        run_card(tmp_path / "out")


@pytest.mark.parametrize("named", [None, ["BertForSomethingNobodyKnows"], ["os, sys; print('run')"], [7], "BertModel"])
def test_a_class_that_nobody_knows_is_said_and_another_one_raises(named: object, tmp_path: Path) -> None:
    """Nothing of a stranger's text becomes code."""
    build("bert with a head").save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    config = {**json.loads(path.read_text()), "architectures": named}
    path.write_text(json.dumps(config))
    initialize(tmp_path / "source", 3, output=tmp_path / "out")
    assert "put the class that the checkpoint was saved from" in (tmp_path / "out" / "README.md").read_text()
    assert "print" not in "".join(card_blocks(tmp_path / "out"))
    with pytest.raises(TargetError, match="no LoRA on bert"):
        run_card(tmp_path / "out")


def test_a_model_without_a_config_is_for_code_of_the_user_s_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", llama_tensors(dtype=torch.float32))
    (tmp_path / "source" / "config.json").unlink()
    initialize(tmp_path / "source", 3, output=tmp_path / "out")
    assert f"with the weights of {tmp_path / 'out'}" in (tmp_path / "out" / "README.md").read_text()
    assert "base =" not in "".join(card_blocks(tmp_path / "out"))


def test_the_class_of_the_model_s_own_code_is_that_of_its_auto_class() -> None:
    remote = {"architectures": ["OwnLM"], "auto_map": {"AutoConfig": "c.OwnConfig", "AutoModelForCausalLM": "m.OwnLM"}}
    expected = 'AutoModelForCausalLM.from_pretrained("/models/it", dtype="auto", trust_remote_code=True)'
    assert call(remote, BF16="BF16") == expected
    known = {"architectures": ["LlamaForCausalLM"], "auto_map": {"AutoModelForCausalLM": "m.LlamaForCausalLM"}}
    assert "trust_remote_code" not in call(known), "transformers' own class needs no foreign code"


@pytest.mark.parametrize(
    ("stated", "stored", "source", "expected"),
    [
        ("float32", "F32", "F32", "auto"),
        ("bfloat16", "BF16", "BF16", "auto"),
        (None, "BF16", "BF16", "auto"),
        ("bfloat16", "F32", "BF16", "float32"),  # --base-dtype float32
        (None, "F32", "BF16", "float32"),
        ("float16", "F32", "F32", "float32"),  # a config.json that states less than is stored
        ("float32", "BF16", "BF16", "auto"),
        ("float16", "BF16", "BF16", "bfloat16"),
    ],
)
def test_no_loader_rounds_the_residual_again(stated: str | None, stored: str, source: str, expected: str) -> None:
    assert call({**BERT, "dtype": stated}, **{stored: source}).endswith(f'dtype="{expected}")')


@pytest.mark.parametrize(
    ("shard", "expected"),
    [
        ("model.safetensors", ""),
        ("model-00001-of-00002.safetensors", ""),
        ("model.fp16.safetensors", 'variant="fp16", '),
        ("model.fp16-00001-of-00002.safetensors", 'variant="fp16", '),
        ("diffusion_pytorch_model.bf16.safetensors", 'variant="bf16", '),
    ],
)
def test_the_variant_of_the_files_is_named(shard: str, expected: str) -> None:
    assert call(BERT, shard=shard) == f'BertForMaskedLM.from_pretrained("/models/it", {expected}dtype="auto")'


def test_a_source_on_the_hub_has_its_revision_and_subfolder() -> None:
    place = Origin("org/name", "abc123", "unet")
    assert call(BERT, place).startswith('BertForMaskedLM.from_pretrained("org/name", revision="abc123", subfolder="un')
    timm = call({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}, Origin("org/name", "abc123"))
    assert timm == 'timm.create_model("hf-hub:org/name@abc123", pretrained=True)'
    assert call({"_class_name": "UNet2DConditionModel"}, place, F16="F16") == (
        'UNet2DConditionModel.from_pretrained("org/name", revision="abc123", subfolder="unet", '
        "torch_dtype=torch.float16)"
    )


@pytest.mark.parametrize("text", ["plain", 'a "b"', "it's", 'it\'s "b"', "a\\b", "```\n```", "é\udce9", "\u202e"])
def test_any_path_is_a_literal_of_python_in_one_line(text: str) -> None:
    shown = literal(text)
    assert eval(shown) == text and "\n" not in shown and "`" not in shown
    shown.encode()


def test_the_card_of_bitfit_runs_as_it_stands(tmp_path: Path) -> None:
    build("bert with a head").save_pretrained(tmp_path / "source")
    found = bitfit(tmp_path / "source", tmp_path / "it's out")
    place = run_card(found.folder)
    assert type(place["model"]) is BertForMaskedLM and len(place["trained"]) == len(found.biases)
