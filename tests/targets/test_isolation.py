"""No code of a model folder runs, and no number in its config.json decides how much time or memory is used."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.targets import module_tree
from ailora_tools.targets.built_class import harmless, look
from ailora_tools.targets.module_tree import ModuleCheck, check_modules, library_folders
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.selection import Selection

PACKAGE = Path(module_tree.__file__).parents[2]
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 64,
}  # fmt: skip
# What a console script does: the current folder is no place for modules.
CONSOLE = [sys.executable, "-P", "-c", "from ailora_tools.cli import main; main()"]
UNPROVEN = [
    sys.executable, "-P", "-c",
    "import ailora_tools.targets.module_tree as tree; tree.proven_with = lambda *_: False; "
    "from ailora_tools.cli import main; main()",
]  # fmt: skip


def asked(folder: Path, **config: object) -> ModuleCheck:
    """The question for a type that the table does not know."""
    described = {**CONFIG, "model_type": "brand_new", **config}
    checkpoint = open_checkpoint(write_checkpoint(folder / "asked", llama_tensors(), **described))
    return check_modules(checkpoint, make_plan(checkpoint), Selection())


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model folder whose every module leaves a mark when it is imported."""
    folder = write_checkpoint(tmp_path / "model", llama_tensors(), **CONFIG)
    mark = f"open({str(tmp_path / 'RUN')!r}, 'a').write(__name__ + '\\n')\n"
    for name in ("json", "torch", "ailora_tools", "typing", "sitecustomize", "usercustomize", "modeling_evil"):
        (folder / f"{name}.py").write_text(mark)
    for name in ("transformers", "numpy", "kernels"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(mark)
    return folder


@pytest.mark.parametrize(("program", "kind"), [(CONSOLE, "brand_new"), (UNPROVEN, "llama")])
def test_a_model_folder_is_no_place_for_modules(hostile: Path, program: list[str], kind: str) -> None:
    """Of a type that the tables lack, and of any type where another transformers is installed."""
    write_checkpoint(hostile, llama_tensors(), **{**CONFIG, "model_type": kind})
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    command = [*program, "init", "--rank", "4", "--dry-run", "-o", "../out"]
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (hostile.parent / "RUN").exists()
    assert "unchecked" not in done.stderr, "the class was asked all the same"


def test_python_m_leaves_the_current_folder_out(hostile: Path) -> None:
    """But for what Python itself imports before the package has a say: see the guide."""
    for name in ("ailora_tools", "typing"):
        (hostile / f"{name}.py").unlink()
    command = [sys.executable, "-m", "ailora_tools", "init", "--rank", "4", "--dry-run", "-o", "../out"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (hostile.parent / "RUN").exists()


def test_where_modules_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, here, model = (tmp_path / name for name in ("elsewhere", "here", "model"))
    for folder in (elsewhere, here, model / "inside"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    libraries = module_tree.sysconfig.get_path("purelib")
    monkeypatch.setattr(sys, "path", ["", str(here), ".", str(elsewhere), str(model / "inside"), libraries])
    assert library_folders(model) == [str(elsewhere), str(Path(libraries).resolve())]
    monkeypatch.chdir(libraries)
    assert str(Path(libraries).resolve()) in library_folders(None), "the interpreter's own folder stays"


def test_names_of_code_and_files_are_dropped_at_any_depth() -> None:
    inner = {"_attn_implementation": "evil/kernel", "hidden_size": 4, "conv_kernel": [3]}
    config = {
        **inner,
        "auto_map": {"AutoModel": "evil--x"},
        "text_config": {**inner, "torch_dtype": "x"},
        "parts": [inner],
    }
    kept = {"hidden_size": 4, "conv_kernel": [3]}
    assert harmless(config) == {**kept, "text_config": kept, "parts": [kept]}


def test_infinity_is_the_number_that_transformers_writes_for_it() -> None:
    """As it stands in files of Bamba, whose class takes nothing but numbers."""
    read = harmless({"time_step_limit": [0.0, {"__float__": "Infinity"}], "other": {"__float__": [1]}})
    assert read == {"time_step_limit": [0.0, math.inf], "other": None}


def test_a_class_whose_library_is_lacking_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Gemma 3n in some versions, where timm is there and torchvision is not."""

    def lacking(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(type(transformers), "__getattr__", lambda _, name: lacking(name))
    found = look({"config": {"architectures": ["NotYetImportedModel"]}, "modules": {}, "targets": []})
    assert found == {"unknown": "NotYetImportedModel cannot be imported (ModuleNotFoundError)"}


@pytest.mark.parametrize("name", ["Trainer", "pipeline", "AutoModelForCausalLM", "__path__", "PretrainedConfig"])
def test_only_a_class_of_models_is_built(name: str) -> None:
    found = look({"config": {"architectures": [name]}, "modules": {}, "targets": []})
    assert "has no class" in found["unknown"] or "could not be built" in found["unknown"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"num_hidden_layers": 10**9}, "asks for num_hidden_layers 1e+09"),
        ({"num_hidden_layers": 10**400}, "asks for num_hidden_layers"),
        ({"text_config": {"num_local_experts": 1e12}}, "asks for num_local_experts 1e+12"),
        ({"hidden_size": 10**12, "vocab_size": 10**12}, "could not be built"),
        ({"num_labels": 10**12}, "could not be built"),
    ],
)
def test_a_config_decides_neither_time_nor_memory(config: dict[str, object], reason: str, tmp_path: Path) -> None:
    (notice,) = asked(tmp_path, **config).finish().notices
    assert reason in notice, "and not that it took too long"


def test_a_class_that_takes_too_long_is_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_tree, "_PATIENCE", 0.01)
    check = asked(tmp_path)
    (notice,) = check.finish().notices
    assert "unchecked" in notice and "not built within" in notice
    assert check._process is not None and check._process.returncode is not None
