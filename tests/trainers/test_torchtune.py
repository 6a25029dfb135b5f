"""torchtune's own recipe on a start that `export --to torchtune` put into its format: `tune run`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.trainers import SCRIPTS, apart, assert_back, environment, load, logits, tiny_decoder, way_back, write_json

from ailora_tools import export, initialize

pytestmark = pytest.mark.trainers
TORCHTUNE = environment("torchtune")
PACKAGES = ("torchtune", "torchao")
ROWS = [[3 + (7 * row + column) % 100 for column in range(12)] for row in range(8)]
MODEL = {
    "_component_": "torchtune.models.llama3_2.lora_llama3_2", "vocab_size": 120, "num_layers": 2, "num_heads": 4,
    "num_kv_heads": 2, "embed_dim": 64, "intermediate_dim": 128, "max_seq_len": 64, "norm_eps": 1e-6,
    "rope_base": 10000, "scale_factor": 1, "tie_word_embeddings": False, "lora_attn_modules": ["q_proj", "v_proj"],
    "apply_lora_to_mlp": False, "lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0.0,
}  # fmt: skip


def recipe(folder: Path, weights: Path, steps: int = 4) -> list[float]:
    """The losses of `lora_finetune_single_device`, the same batch at every step; it saves below `folder`/out.

    The adapter alone: on a CPU the recipe would merge into the very tensors that it trains.
    """
    rows = write_json(folder / "rows.json", steps * ROWS)
    settings = {
        "model": MODEL, "output_dir": str(folder / "out"), "device": "cpu", "dtype": "fp32", "seed": 0,
        "checkpointer": {
            "_component_": "torchtune.training.FullModelTorchTuneCheckpointer", "checkpoint_dir": str(weights.parent),
            "checkpoint_files": [weights.name], "model_type": "LLAMA3_2", "output_dir": "${output_dir}",
        },
        "tokenizer": {"_component_": "torchtune_rows.Tokens"},
        "dataset": {"_component_": "torchtune_rows.rows", "file": str(rows)},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": 0.0},
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup", "num_warmup_steps": 1,
        },
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": str(folder / "log"),
        },
        "resume_from_checkpoint": False, "save_adapter_weights_only": True, "shuffle": False,
        "batch_size": len(ROWS), "epochs": 1, "compile": False,
        "max_steps_per_epoch": None, "gradient_accumulation_steps": 1, "log_every_n_steps": 1,
    }  # fmt: skip
    file = write_json(folder / "settings.yaml", settings)
    words = ("tune", "run", "lora_finetune_single_device", "--config", file)
    TORCHTUNE.run(*words, here=folder, PYTHONPATH=str(SCRIPTS))
    told = "".join(path.read_text() for path in (folder / "log").rglob("*.txt"))
    return [float(found) for found in re.findall(r"loss:([\d.]+)", told)]


def weights(*words: str | Path, here: Path) -> None:
    TORCHTUNE.run("python", SCRIPTS / "torchtune_weights.py", *words, here=here)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def start(original: Path) -> Path:
    return initialize(original, 4, output=original.parent / "start").folder


@pytest.fixture(scope="module")
def trained(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """The folder of a run on the start, base and adapter in one file, and the losses."""
    folder = tmp_path_factory.mktemp("run")
    exported = export(start, "torchtune", folder / "exported").folder
    (folder / "start").mkdir()
    weights("into", start, exported / "adapter_model.pt", folder / "start" / "model.pt", here=folder)
    return folder, recipe(folder, folder / "start" / "model.pt")


@pytest.fixture(scope="module")
def merged(start: Path, trained: tuple[Path, list[float]]) -> torch.nn.Module:
    """The start with what the recipe saved, merged by torchtune."""
    folder = trained[0]
    weights("from", start, folder / "out" / "epoch_0" / "adapter_model.pt", folder / "merged", here=folder)
    return load(folder / "merged")


def test_base_and_adapter_in_one_file_are_the_original_and_train(
    original: Path, trained: tuple[Path, list[float]], merged: torch.nn.Module, line: Any
) -> None:
    """Stock recipes read no adapter to start from, but load what the base's file holds beside the base."""
    line.about("torchtune", "`lora_finetune_single_device`, base and adapter in one file", TORCHTUNE, *PACKAGES)
    rows, told = torch.tensor(ROWS), trained[1]
    with torch.no_grad():
        expected = float(load(original)(input_ids=rows, labels=rows).loss)
    line.numbers |= {"first loss": told[0], "first loss of the original": expected, "last loss": told[-1]}
    line.numbers["changed"] = apart(logits(load(original)), logits(merged))
    assert told[0] == pytest.approx(expected, rel=1e-5) and told[-1] < told[0]
    assert line.numbers["changed"] > 1e-2


def test_without_the_adapter_in_it_a_new_one_is_trained(start: Path, original: Path, tmp_path: Path, line: Any) -> None:
    """Why the guide says so: the residual base alone is taken without a word."""
    line.about("torchtune", "the residual base alone: do not", TORCHTUNE, *PACKAGES)
    (tmp_path / "base").mkdir()
    weights("into", start, "-", tmp_path / "base" / "model.pt", here=tmp_path)
    rows = torch.tensor(ROWS)
    with torch.no_grad():
        expected = float(load(original)(input_ids=rows, labels=rows).loss)
    line.numbers |= {"first loss": recipe(tmp_path, tmp_path / "base" / "model.pt", 1)[0]}
    line.numbers |= {"first loss of the original": expected}
    assert abs(line.numbers["first loss"] - expected) > 0.02


def test_the_trained_adapter_comes_back(
    start: Path, original: Path, trained: tuple[Path, list[float]], merged: torch.nn.Module, tmp_path: Path, line: Any
) -> None:
    """This checkpointer saves no configs, which tell the scaling and the order of rows."""
    line.about("torchtune", "`convert` and `merge` of what the recipe saved", TORCHTUNE, *PACKAGES)
    saved = trained[0] / "out" / "epoch_0"
    shutil.copy(start / "config.json", saved)
    (saved / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4}))
    line.numbers |= way_back(saved, start, original, tmp_path, of=merged)
    assert_back(line.numbers)
