"""Real trainers and servers, run by their own commands in environments of their own, and what they leave compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ailora_tools import convert, merge

from .real_models import ROOT

LN_2 = 0.693147  # the loss of DPO while policy and reference are the same model
LONGEST = 600  # seconds of a run; the longest here takes one minute where nothing else runs
ENVIRONMENTS = ROOT / ".venv-trainers"
QUESTION = ("How", "many", "are", "and", "?", ".", "I", "do", "not", "know")
SCRIPTS = ROOT / "tests" / "trainers" / "scripts"


@dataclass(frozen=True)
class Environment:
    """A virtual environment. Nothing of a run in it is written outside the folder it is run in."""

    folder: Path

    def run(self, *command: str | Path, here: Path, **variables: str) -> str:
        """What a program of the environment prints; RuntimeError with its last words if it fails or hangs."""
        program, *arguments = map(str, command)
        path = self.folder / "bin" / program
        if not path.exists():
            raise RuntimeError(f"{path} is missing: run `make trainers`")
        running = subprocess.Popen(
            [path, *arguments], cwd=here, env=self._variables(here) | variables, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            printed, _ = running.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # launchers leave the processes that they started
            printed = running.communicate()[0] + f"\nstopped after {LONGEST} seconds"
        if running.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}\n{printed[-4000:]}")
        return printed

    def _variables(self, here: Path) -> dict[str, str]:
        given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}
        caches = {"HOME": here, "HF_HOME": here / "hf", "MODELSCOPE_CACHE": here / "modelscope"}
        return {
            **given, **{name: str(value) for name, value in caches.items()},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{given['PATH']}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def version(self, package: str) -> str:
        """Of an installed package, without starting the environment's Python."""
        site = next(self.folder.glob("lib/python*/site-packages"))
        return next(found.version for found in distributions(name=package, path=[str(site)]))


HERE = Environment(Path(sys.prefix))


def environment(name: str) -> Environment:
    """One that `make trainers` makes, of tests/trainers/environments/NAME.txt."""
    return Environment(ENVIRONMENTS / name)


def write_json(path: Path, document: object) -> Path:
    """JSON is YAML, too: configs of trainers that want a YAML file are written so."""
    path.write_text(json.dumps(document, indent=2))
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(here: Path) -> Any:
    """What a script of ours found out when it ran in `here`; printed, it would lie among what the trainers print."""
    return json.loads((here / "told.json").read_text())


def losses(folder: Path) -> list[float]:
    """Of every step of a run of transformers' Trainer: what its newest state below `folder` holds."""
    states = [json.loads(path.read_text()) for path in folder.rglob("trainer_state.json")]
    newest = max(states, key=lambda state: state["global_step"])
    return [entry["loss"] for entry in newest["log_history"] if "loss" in entry]


# Models ---------------------------------------------------------------------------------------------------------------


def tiny_decoder(folder: Path) -> Path:
    """A random Llama of two layers, for which every matrix counts, with a tokenizer of 120 whole words."""
    words = ["<pad>", "</s>", "<unk>", *QUESTION, *map(str, range(107))]
    vocabulary = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=len(words), initializer_range=0.2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sums(count: int) -> list[tuple[str, str]]:
    """Questions and answers in words that `tiny_decoder` knows."""
    return [(f"How many are {n} and {n + 3} ?", f"{2 * n + 3} .") for n in range(count)]


def load(folder: Path) -> nn.Module:
    """A decoder in float32, so that only the adapter's own arithmetic is compared."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def adapted(base: Path, adapter: Path, trainable: bool = False) -> PeftModel:
    """The adapter on a base."""
    return PeftModel.from_pretrained(load(base), adapter, is_trainable=trainable)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Of ten tokens, in float64."""
    found: Tensor = model.eval()(input_ids=torch.arange(3, 103, 10)[None]).logits
    return found.double()


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def way_back(trained: Path, start: Path, original: Path, folder: Path, of: nn.Module | None = None) -> dict[str, float]:
    """How far from the trained model `convert` on the original and `merge` are, and how far training led from it.

    `of` is the trained model where PEFT cannot load what the trainer wrote.
    """
    expected = logits(of or adapted(start, trained))
    convert(trained, start, folder / "plain")
    merge(start, trained, folder / "merged")
    return {
        "convert": apart(logits(adapted(original, folder / "plain")), expected),
        "merge": apart(logits(load(folder / "merged")), expected),
        "changed": apart(logits(load(original)), expected),
    }


def assert_back(numbers: Mapping[str, float]) -> None:
    """Both ways lead to the trained model, which is another than the original."""
    assert max(numbers["convert"], numbers["merge"]) < 1e-5 < 1e-2 < numbers["changed"], numbers
