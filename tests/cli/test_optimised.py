"""`python -OO` strips docstrings and asserts: no behaviour may hang on either."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ailora_tools

PACKAGE = Path(ailora_tools.__file__).parent


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama of one layer."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 32,
              "num_attention_heads": 4, "vocab_size": 16, "intermediate_size": 24}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"model.layers.0.self_attn.{role}_proj.weight" for role in "qkvo"]
    save_file({name: torch.randn(32, 32) for name in names}, folder / "model.safetensors", {"format": "pt"})
    return folder


def run(optimise: bool, folder: Path, *arguments: str) -> str:
    command = [sys.executable, *(["-OO"] if optimise else []), "-m", "ailora_tools", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_the_commands_and_options(tmp_path: Path) -> None:
    assert {"analyze", "init", "verify"} <= set(run(True, tmp_path, "--help").split())
    assert "--rank" in run(True, tmp_path, "init", "--help")


def test_the_verbs_write_the_same(model: Path, tmp_path: Path) -> None:
    for optimise, name in ((True, "stripped"), (False, "whole")):
        out = tmp_path / name
        run(optimise, tmp_path, "init", str(model), "-r", "4", "-o", str(out / "init"))
        run(optimise, tmp_path, "analyze", str(model), "--suggest-ranks", "4", "-o", str(out / "report"))
    for file in ("init/model.safetensors", "init/ailora_init/adapter_model.safetensors", "report/ranks.json"):
        assert (tmp_path / "stripped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert json.loads((tmp_path / "whole/report/ranks.json").read_text())["rule"].startswith("spend a budget")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_docstring_is_read_and_asserts_only_narrow_types(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute) and "__doc__" in ast.unparse(node)
    ]
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Assert)):
        assert ast.unparse(node.test).startswith("isinstance(") or ast.unparse(node.test).endswith(" is not None")
