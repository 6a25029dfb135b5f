"""`export` with a config.json that is broken or belongs to another model: one message, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ailora_tools import export
from ailora_tools.cli import main
from ailora_tools.errors import AiloraError, CheckpointError, TargetError

ROWS, RANK = 16, 2


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA of W^Q and W^K in one layer, as PEFT saves it."""
    folder = tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    prefix = "base_model.model.model.layers.0.self_attn"
    tensors = {}
    for name in ("q_proj", "k_proj"):
        tensors[f"{prefix}.{name}.lora_A.weight"] = torch.randn(RANK, 16)
        tensors[f"{prefix}.{name}.lora_B.weight"] = torch.randn(ROWS, RANK)
    save_file(tensors, folder / "adapter_model.safetensors")
    describe(folder)
    return folder


def describe(folder: Path, **changes: Any) -> None:
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def base(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder


def llama(**changes: Any) -> str:
    return json.dumps({"model_type": "llama", "num_attention_heads": 4, **changes})


FAULTS = {
    "not JSON": ('{"model_type": "llama",', CheckpointError, "not valid JSON"),
    "no object": ("[1, 2]", CheckpointError, "expected a JSON object"),
    "no type": ("{}", TargetError, "model type None"),
    "a type that is no name": ('{"model_type": ["llama"]}', TargetError, "row order is known here for"),
    "no heads": ('{"model_type": "llama"}', TargetError, "num_attention_heads is missing"),
    "heads as text": (llama(num_attention_heads="4"), TargetError, "num_attention_heads is '4'"),
    "heads by layer": (llama(num_key_value_heads=[2, 2]), TargetError, r"num_key_value_heads is \[2, 2\]"),
    "negative heads": (llama(num_attention_heads=-4), TargetError, "num_attention_heads is -4"),
    "heads that do not divide": (llama(num_attention_heads=5), TargetError, "_proj: 16 rows cannot be 5 heads"),
    "key heads that do not": (llama(num_key_value_heads=3), TargetError, "k_proj: 16 rows cannot be 3 heads"),
    "heads of an odd number of rows": (llama(num_attention_heads=16), TargetError, "two rotary halves"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_named(name: str, adapter: Path, tmp_path: Path) -> None:
    text, kind, message = FAULTS[name]
    model = base(tmp_path / "model", text)
    with pytest.raises(kind, match=message) as caught:
        export(adapter, "torchtune", tmp_path / "out", base=model)
    assert caught.value.hint and not (tmp_path / "out").exists()
    command = ["export", str(adapter), "--to", "torchtune", "--base", str(model), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)


def test_a_right_config_still_gives_the_rows_of_each_head(adapter: Path, tmp_path: Path) -> None:
    model = base(tmp_path / "model", llama(num_key_value_heads=2))
    done = export(adapter, "torchtune", tmp_path / "out", base=model)
    state = torch.load(done.folder / "adapter_model.pt", weights_only=True)
    held = load_file(adapter / "adapter_model.safetensors")
    for name, heads in (("q_proj", 4), ("k_proj", 2)):
        rows = held[f"base_model.model.model.layers.0.self_attn.{name}.lora_B.weight"].view(heads, 2, -1, RANK)
        assert torch.equal(state[f"layers.0.attn.{name}.lora_b.weight"].view(heads, -1, 2, RANK), rows.transpose(1, 2))


def test_the_config_is_looked_for_in_three_places(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="model type None"):
        export(adapter, "torchtune", tmp_path / "out")
    named = base(tmp_path / "named", llama())
    describe(adapter, base_model_name_or_path=str(named))
    export(adapter, "torchtune", tmp_path / "out")
    base(adapter.parent, '{"model_type": "bert"}')
    with pytest.raises(TargetError, match="model type 'bert'"):
        export(adapter, "torchtune", tmp_path / "out", overwrite=True)
    base(adapter, "{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        export(adapter, "torchtune", tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("named", [None, "", 7, ["x"], "no/such/folder", "a\0b", "x" * 5000])
def test_a_base_that_is_no_folder_here_is_passed_over(named: object, adapter: Path, tmp_path: Path) -> None:
    describe(adapter, base_model_name_or_path=named)
    assert export(adapter, "mlx", tmp_path / "out").modules == 2
    with pytest.raises(AiloraError, match="model type None"):
        export(adapter, "torchtune", tmp_path / "other")


def test_the_verb_loads_no_torch() -> None:
    code = "import sys; import ailora_tools.verbs.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
