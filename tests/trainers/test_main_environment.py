"""Trainers of the environment that all tests run in, on a tiny model: transformers, TRL, torch's data parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from kit.trainers import (
    HERE,
    LN_2,
    SCRIPTS,
    adapted,
    answer,
    apart,
    assert_back,
    load,
    logits,
    losses,
    sums,
    tiny_decoder,
    way_back,
    write_json,
)  # fmt: skip
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import ailora_tools
from ailora_tools import convert, initialize

RATE = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8}
QUIET = {"logging_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 0}
STEPS = {"max_steps": 4, "save_steps": 2}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def start(original: Path) -> Path:
    return initialize(original, 4, output=original.parent / "start").folder


@pytest.fixture(scope="module")
def two(original: Path) -> Path:
    """A start that leaves the base alone."""
    return initialize(original, 4, no_base=True, output=original.parent / "two").folder


def ready(base: Path, adapter: Path) -> PeftModel:
    set_seed(0)
    return adapted(base, adapter, trainable=True)


def attached(original: Path, two: Path) -> PeftModel:
    """The adapter on the original, its offset where nothing deactivates it."""
    model = ready(original, two / "ailora_init")
    ailora_tools.attach(model, two)
    return model


# transformers' Trainer ------------------------------------------------------------------------------------------------


def rows() -> Tensor:
    """Eight, which make one batch, so that their order plays no part in the loss."""
    return torch.randint(3, 120, (8, 12), generator=torch.Generator().manual_seed(0))


def fit(model: nn.Module, folder: Path, resume: Path | None = None, **settings: Any) -> list[float]:
    """The losses of a run of the Trainer."""
    data = [{"input_ids": row, "labels": row} for row in rows()]
    arguments = TrainingArguments(output_dir=str(folder), **{**RATE, **QUIET, **STEPS, **settings})
    Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data).train(resume_from_checkpoint=resume)
    return losses(folder)


def loss_of(model: nn.Module, bf16: bool = False) -> float:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return float(model.eval()(input_ids=rows(), labels=rows()).loss)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"gradient_checkpointing": True},
    {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True},
    {"bf16": True},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_trainer_resumes_and_the_model_comes_back(
    settings: dict[str, Any], start: Path, original: Path, tmp_path: Path, line: Any
) -> None:
    line.about(
        "transformers Trainer", f"resume, convert, merge; {settings or 'defaults'}", HERE, "transformers", "peft"
    )
    model = ready(start, start / "ailora_init")
    told = fit(model, tmp_path / "run", **settings)
    again = ready(start, start / "ailora_init")
    resumed = fit(again, tmp_path / "resumed", tmp_path / "run" / "checkpoint-2", **settings)
    again.save_pretrained(tmp_path / "trained")
    expected = loss_of(load(original), bf16=settings.get("bf16", False))
    line.numbers |= {"first loss": told[0], "first loss of the original": expected, "last loss": told[-1]}
    line.numbers |= {"last loss, resumed": resumed[-1]} | way_back(tmp_path / "trained", start, original, tmp_path)
    # Under autocast the residual base and its adapter are rounded one by one.
    assert told[0] == pytest.approx(expected, rel=1e-2 if settings.get("bf16") else 1e-5)
    assert resumed == pytest.approx(told, rel=1e-5) and told[-1] < told[0]
    assert_back(line.numbers)


def test_trainer_resumes_on_an_untouched_base(two: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("transformers Trainer", "`--no-base`: resume, convert", HERE, "transformers", "peft")
    told = fit(attached(original, two), tmp_path / "run")
    resumed = fit(attached(original, two), tmp_path / "resumed", tmp_path / "run" / "checkpoint-2")
    line.numbers |= {"first loss": told[0], "last loss": told[-1], "last loss, resumed": resumed[-1]}
    assert told[0] == pytest.approx(loss_of(load(original)), rel=1e-5)
    assert resumed == pytest.approx(told, rel=1e-5)


# TRL ------------------------------------------------------------------------------------------------------------------


def sft(model: nn.Module, tokens: Path, folder: Path, resume: Path | None = None, **settings: Any) -> list[float]:
    arguments = SFTConfig(output_dir=str(folder), bf16=False, **{**RATE, **QUIET, **STEPS, **settings})
    SFTTrainer(
        model=model, args=arguments, processing_class=AutoTokenizer.from_pretrained(tokens),
        train_dataset=Dataset.from_list([{"text": f"{asked} {answer}"} for asked, answer in sums(8)]),
    ).train(resume_from_checkpoint=resume)  # fmt: skip
    return losses(folder)


@pytest.mark.parametrize("settings", [{}, {"packing": True, "gradient_checkpointing": True, "max_length": 32}])
def test_sft_resumes_and_the_model_comes_back(
    settings: dict[str, Any], start: Path, original: Path, tmp_path: Path, line: Any
) -> None:
    line.about(
        "TRL SFTTrainer", f"resume, convert, merge; {settings or 'defaults'}", HERE, "trl", "transformers", "peft"
    )
    told = sft(ready(start, start / "ailora_init"), start, tmp_path / "run", **settings)
    again = ready(start, start / "ailora_init")
    resumed = sft(again, start, tmp_path / "resumed", tmp_path / "run" / "checkpoint-2", **settings)
    again.save_pretrained(tmp_path / "trained")
    expected = sft(load(original), start, tmp_path / "original", max_steps=1, **settings)[0]
    line.numbers |= {"first loss": told[0], "first loss of the original": expected, "last loss": told[-1]}
    line.numbers |= {"last loss, resumed": resumed[-1]} | way_back(tmp_path / "trained", start, original, tmp_path)
    assert told[0] == pytest.approx(expected, rel=1e-5)
    assert resumed == pytest.approx(told, rel=1e-5) and told[-1] < told[0]
    assert_back(line.numbers)


def dpo(model: nn.Module, tokens: Path, folder: Path, resume: Path | None = None) -> list[float]:
    pairs = [{"prompt": asked, "chosen": f" {answer}", "rejected": " I do not know"} for asked, answer in sums(8)]
    arguments = DPOConfig(output_dir=str(folder), bf16=False, **{**RATE, **QUIET, **STEPS})
    DPOTrainer(
        model=model, args=arguments, processing_class=AutoTokenizer.from_pretrained(tokens),
        train_dataset=Dataset.from_list(pairs),
    ).train(resume_from_checkpoint=resume)  # fmt: skip
    return losses(folder)


def test_dpo_starts_at_the_reference(start: Path, original: Path, tmp_path: Path, line: Any) -> None:
    """A PeftModel's reference is a copy of its adapter, on the same residual base."""
    line.about("TRL DPOTrainer", "PeftModel on the residual base: resume, convert, merge", HERE, "trl", "peft")
    told = dpo(ready(start, start / "ailora_init"), start, tmp_path / "run")
    again = ready(start, start / "ailora_init")
    resumed = dpo(again, start, tmp_path / "resumed", tmp_path / "run" / "checkpoint-2")
    again.save_pretrained(tmp_path / "trained", selected_adapters=["default"])
    line.numbers |= {"first loss": told[0], "last loss": told[-1], "last loss, resumed": resumed[-1]}
    line.numbers |= way_back(tmp_path / "trained", start, original, tmp_path)
    assert told[0] == pytest.approx(LN_2, abs=1e-4)
    assert resumed == pytest.approx(told, rel=1e-4) and told[-1] < told[0]
    assert_back(line.numbers)


def test_dpo_starts_at_the_reference_on_an_untouched_base(two: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("TRL DPOTrainer", "`--no-base`, no `ref_model`", HERE, "trl", "peft")
    line.numbers["first loss"] = dpo(attached(original, two), original, tmp_path / "run")[0]
    assert line.numbers["first loss"] == pytest.approx(LN_2, abs=1e-4)


def grpo(model: nn.Module, tokens: Path, folder: Path) -> list[float]:
    """The divergence from the reference at every step."""

    def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token % 2 == 0 for token in tokens) / len(tokens) for tokens in completion_ids]

    arguments = GRPOConfig(
        output_dir=str(folder), bf16=False, beta=0.1, num_generations=4, max_completion_length=6,
        **{**RATE, **QUIET, "max_steps": 3},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, args=arguments, reward_funcs=even, processing_class=AutoTokenizer.from_pretrained(tokens),
        train_dataset=Dataset.from_list([{"prompt": asked} for asked, _ in sums(8)]),
    )  # fmt: skip
    trainer.train()
    return [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]


def test_grpo_starts_at_the_reference(start: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("TRL GRPOTrainer", "beta 0.1, PeftModel on the residual base: convert, merge", HERE, "trl", "peft")
    model = ready(start, start / "ailora_init")
    told = grpo(model, start, tmp_path / "run")
    model.save_pretrained(tmp_path / "trained", selected_adapters=["default"])
    line.numbers |= {"first kl": told[0], "last kl": told[-1]}
    line.numbers |= way_back(tmp_path / "trained", start, original, tmp_path)
    assert told[0] == pytest.approx(0, abs=1e-6) and told[-1] > 1e-4
    assert_back(line.numbers)


def test_grpo_keeps_an_untouched_base_s_offset(two: Path, original: Path, tmp_path: Path, line: Any) -> None:
    line.about("TRL GRPOTrainer", "`--no-base`, beta 0.1: convert", HERE, "trl", "peft")
    model = attached(original, two)
    told = grpo(model, original, tmp_path / "run")
    found = logits(model)
    model.save_pretrained(tmp_path / "trained", selected_adapters=["default"])
    convert(tmp_path / "trained", two, tmp_path / "plain")
    line.numbers |= {"first kl": told[0], "convert": apart(logits(adapted(original, tmp_path / "plain")), found)}
    assert told[0] == pytest.approx(0, abs=1e-6) and line.numbers["convert"] < 1e-5


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "consumer"), [("ddp", "DDP (torchrun, Trainer)"), ("fsdp2", "FSDP2 (fully_shard)")])
def test_two_processes_train_and_the_model_comes_back(
    way: str, consumer: str, start: Path, original: Path, tmp_path: Path, line: Any
) -> None:
    line.about(consumer, "two processes, gloo: convert, merge", HERE, "torch", "transformers", "peft")
    file = write_json(tmp_path / "rows.json", rows().tolist())
    launch = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    HERE.run(*launch, SCRIPTS / "parallel.py", way, start, file, tmp_path / "trained", here=tmp_path)
    found = answer(tmp_path)
    expected = loss_of(load(original))
    line.numbers |= {"first loss": found[0], "first loss of the original": expected, "last loss": found[-1]}
    line.numbers |= way_back(tmp_path / "trained", start, original, tmp_path)
    assert found[0] == pytest.approx(expected, rel=1e-5) and found[-1] < found[0]
    assert_back(line.numbers)
