"""What users of other tools ran into between init and serving, replayed with our folders.

The numbers are those of threads in the trackers of PEFT, LLaMA-Factory, PiSSA, RWKV-PEFT and Axolotl.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.adapters import near, original, prepare, train
from kit.checkpoints import tree
from kit.families import FAMILIES, build, output
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ailora_tools import convert, initialize, merge, verify
from ailora_tools.cli.group import main
from ailora_tools.errors import CheckpointError, TargetError

INPUTS = FAMILIES["llama"].inputs


def answers(model: torch.nn.Module) -> Tensor:
    return output(model.eval(), INPUTS())


def test_the_original_is_untouched_and_can_be_had_back(tmp_path: Path) -> None:
    """PEFT 2184, 1626: a surgery in place that nothing undoes. Merging the untrained start gives the original."""
    build("llama").save_pretrained(tmp_path / "model")
    before = tree(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, output=tmp_path / "init")
    assert tree(tmp_path / "model") == before
    merge(tmp_path / "init", made.adapter, tmp_path / "back")
    old, new = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "back"))
    assert old.keys() == new.keys() and all(torch.allclose(old[name], new[name], atol=1e-7) for name in old)


def test_converted_adapters_of_two_methods_share_the_original(tmp_path: Path) -> None:
    """PEFT 2270, PiSSA 46: two residualised adapters cannot share a base; converted they share the original."""
    expected = {}
    for method in ("ailora", "pissa"):
        (tmp_path / method).mkdir()
        trained, expected[method] = prepare("llama", tmp_path / method, method=method)
        convert(trained, tmp_path / method / "init", tmp_path / f"plain-{method}")
    model = PeftModel.from_pretrained(original("llama", tmp_path / "ailora"), tmp_path / "plain-ailora", "ailora")
    model.load_adapter(tmp_path / "plain-pissa", "pissa")
    for method, found in expected.items():
        model.set_adapter(method)
        assert near(answers(model), found, 1e-5)


def test_the_card_says_which_folder_and_its_commands_run(tmp_path: Path) -> None:
    """LLaMA-Factory 5844, 6171, 5003: which folder is for inference?"""
    trained, expected = prepare("llama", tmp_path)
    card = (tmp_path / "init" / "README.md").read_text()
    commands = [line.strip() for line in card.splitlines() if line.startswith("    ailora-tools ")]
    assert len(commands) == 2
    places = {
        "FOLDER": tmp_path / "init",
        "TRAINED": trained,
        "plain-lora": tmp_path / "plain",
        "merged": tmp_path / "m",
    }
    for command in commands:
        words = [str(places.get(word, word)) for word in shlex.split(command)[1:]]
        assert CliRunner().invoke(main, words).exit_code == 0
    assert near(answers(PeftModel.from_pretrained(original("llama", tmp_path), tmp_path / "plain")), expected)
    assert near(answers(type(build("llama")).from_pretrained(tmp_path / "m")), expected)


@pytest.mark.parametrize("wrong", ["nowhere", "model", "init/ailora.json"])
def test_a_folder_without_an_adapter_is_named(wrong: str, tmp_path: Path) -> None:
    """LLaMA-Factory 4992: "Adapter pissa_init does not exist" for a path with a slash behind it."""
    prepare("llama", tmp_path)
    with pytest.raises(CheckpointError, match=f"{wrong.split('/')[-1]}.*expected an adapter"):
        convert(tmp_path / wrong, tmp_path / "init", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    assert convert(f"{tmp_path}/trained/", f"{tmp_path}/init/", f"{tmp_path}/plain/").modules


def test_a_folder_that_was_moved_still_works(tmp_path: Path) -> None:
    """PEFT 2001, 1932: the path of the base in the adapter's config is no longer true."""
    trained, expected = prepare("llama", tmp_path)
    shutil.move(tmp_path / "init", tmp_path / "elsewhere")
    assert verify(tmp_path / "elsewhere").holds
    merge(tmp_path / "elsewhere", trained, tmp_path / "merged")
    assert near(answers(type(build("llama")).from_pretrained(tmp_path / "merged")), expected)
    convert(trained, tmp_path / "elsewhere", tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model"), "the original, which was not moved"


def test_an_adapter_for_another_model_is_refused_by_shape(tmp_path: Path) -> None:
    """Axolotl 2277: a size mismatch deep inside a trainer."""
    trained, _ = prepare("llama", tmp_path)
    convert(trained, tmp_path / "init", tmp_path / "plain")
    config = build("llama").config
    wider = LlamaConfig(**{**config.to_dict(), "head_dim": 2 * config.head_dim})
    LlamaForCausalLM(wider).save_pretrained(tmp_path / "other")
    with pytest.raises(TargetError, match=r"does not fit .*other: .*has shape"):
        merge(tmp_path / "other", tmp_path / "plain", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_training_goes_on_from_a_trained_adapter(tmp_path: Path) -> None:
    """RWKV-PEFT 54: the second run did not find the start. Ours stays in the folder of init, whoever trains on."""
    trained, _ = prepare("llama", tmp_path)
    base = type(build("llama")).from_pretrained(tmp_path / "init").eval()
    model = PeftModel.from_pretrained(base, trained, is_trainable=True)
    train(model, "llama")
    model.save_pretrained(tmp_path / "longer")
    plain = convert(tmp_path / "longer", tmp_path / "init", tmp_path / "plain").folder
    assert near(answers(PeftModel.from_pretrained(original("llama", tmp_path), plain)), answers(model))


def test_a_merge_tells_how_much_it_changed(tmp_path: Path) -> None:
    """PEFT 1388, 1904: a merge whose precision nobody sees."""
    trained, _ = prepare("llama", tmp_path)
    done = merge(tmp_path / "init", trained, tmp_path / "merged")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("init", "merged"))
    for module in done.modules:
        change = (after[module.tensor] - before[module.tensor]).norm() / before[module.tensor].norm()
        assert module.change == pytest.approx(float(change), rel=1e-3)
