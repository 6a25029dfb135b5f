"""Does the asymmetric start help? Every method at learning rates of its own, on real models and text.

    python -m examples.study minilm MODEL WORK [--form full] [--workers 2]
    python -m examples.study smollm2 MODEL WORK

MODEL is a folder with the model, WORK keeps texts and starts. One JSON line a run goes to
reports/study/<task>-<form>.jsonl; a run that is there already is not repeated, so that the study can be stopped and
gone on with. First every arm at seed 0 over its ladder of learning rates, which is climbed further while the best one
is at an end; then more seeds at the best learning rate and its neighbours (form full). `report.py` tells the outcome.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, RANK, Started, count, start
from tasks import HEAD_LR, TASKS, batches
from torch import nn

from ailora_tools import analyze, merge

REPORTS = Path(__file__).resolve().parents[2] / "reports" / "study"


@dataclass(frozen=True)
class Form:
    """The size of a study: optimiser steps, batch, texts, evaluations on the way, seeds beside the first."""

    steps: int
    batch: int
    train: int
    test: int
    looks: int
    seeds: int


FORMS = {
    ("minilm", "quick"): Form(48, 16, 768, 200, 3, 0),
    ("minilm", "full"): Form(126, 32, 2016, 1000, 6, 2),
    ("smollm2", "quick"): Form(12, 4, 200, 40, 2, 0),
    ("smollm2", "full"): Form(60, 4, 720, 200, 4, 2),
}


@dataclass(frozen=True)
class Run:
    """One training. Everything that its outcome depends on, besides the form."""

    arm: str
    lr: float
    seed: int


def main() -> Path:
    """All the waves; the file with the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--form", choices=["quick", "full"], default="quick")
    parser.add_argument("--arms", help="Only these, such as lora,ailora.")
    parser.add_argument("--workers", type=int, default=2, help="Runs at a time, one thread each.")
    parser.add_argument("--seeds", type=int, help="Beside the first, instead of those of the form.")
    parser.add_argument("--steps", type=int, help="Instead of those of the form, to try the study itself.")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    form = FORMS[asked.task, asked.form]
    if asked.steps:
        form = Form(**{**asdict(form), "steps": asked.steps, "test": 20, "looks": 1})
    if asked.seeds is not None:
        form = Form(**{**asdict(form), "seeds": asked.seeds})
    out = asked.out or REPORTS / f"{asked.task}-{asked.form}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    names = asked.arms.split(",") if asked.arms else list(TASKS[asked.task].arms or ARMS)
    study = Study(asked.task, asked.model, asked.work, form, out)
    TASKS[asked.task](asked.model, asked.work / "texts", form.train, form.test)  # texts are there before workers start
    with ProcessPoolExecutor(asked.workers, get_context("spawn"), _one_thread) as pool:
        for wave in (first_rates, further_rates, further_rates, more_seeds):
            study.work_on([run for name in names for run in wave(name, study.lines(), form)], pool)
    return out


def first_rates(arm: str, done: list[dict[str, Any]], form: Form) -> Iterator[Run]:
    yield from (Run(arm, lr, 0) for lr in ARMS[arm].rates[slice(*ARMS[arm].first)])


def further_rates(arm: str, done: list[dict[str, Any]], form: Form) -> Iterator[Run]:
    """The neighbours of the best rate that were not tried; the ladder ends somewhere."""
    yield from (Run(arm, lr, 0) for lr in around_best(arm, done))


def more_seeds(arm: str, done: list[dict[str, Any]], form: Form) -> Iterator[Run]:
    yield from (Run(arm, lr, 1 + seed) for lr in around_best(arm, done) for seed in range(form.seeds))


def around_best(arm: str, done: list[dict[str, Any]]) -> tuple[float, ...]:
    """The learning rate with the lowest held-out loss at seed 0, and those beside it on the ladder."""
    found = {line["lr"]: line["final"]["loss"] for line in done if (line["arm"], line["seed"]) == (arm, 0)}
    rates = ARMS[arm].rates
    at = rates.index(min(found, key=lambda lr: found[lr]))
    return rates[max(0, at - 1) : at + 2]


@dataclass(frozen=True)
class Study:
    """Where everything lies; takes runs and keeps their lines."""

    task: str
    model: Path
    work: Path
    form: Form
    out: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []

    def work_on(self, runs: list[Run], pool: ProcessPoolExecutor) -> None:
        """What is not yet there, several at a time; each line is written when its run ends."""
        done = {Run(line["arm"], line["lr"], line["seed"]) for line in self.lines()}
        waiting = [pool.submit(one, self, run) for run in dict.fromkeys(runs) if run not in done]
        for number, future in enumerate(as_completed(waiting), 1):
            line = future.result()
            with self.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{number}/{len(waiting)} {line['arm']} lr {line['lr']:g} seed {line['seed']}: {line['final']}",
                flush=True,
            )


def one(study: Study, run: Run) -> dict[str, Any]:
    """Start, train, evaluate; in a worker."""
    begun = time.monotonic()
    task = TASKS[study.task](study.model, study.work / "texts", study.form.train, study.form.test)
    starts = study.work / f"{study.task}-{run.arm}-s{run.seed}-{os.getpid()}"
    started = start(ARMS[run.arm], study.model, starts, run.lr, run.seed, task.load)
    head = task.head(started.backbone, run.seed)
    other = task.other_text(started.backbone.eval())
    losses, looks = _train(study.form, run, task, started, head)
    line = {
        **asdict(run), "task": study.task, "rank": RANK, **asdict(study.form), "trained": count(started.backbone),
        "losses": losses, "looks": looks, "final": looks[-1],
        "other_text": {"before": other, "after": task.other_text(started.backbone.eval())},
        "drift": _drift(study, run, started) if run.seed == 0 else None,
        "seconds": round(time.monotonic() - begun, 1),
        "versions": {name: version(name) for name in ("ailora-tools", "torch", "peft", "transformers")},
    }  # fmt: skip
    shutil.rmtree(starts, ignore_errors=True)
    return line


def _train(
    form: Form, run: Run, task: Any, started: Started, head: nn.Module | None
) -> tuple[list[float], list[dict[str, float]]]:
    """AdamW without decay, a tenth of the steps to warm up, then linearly to 0: the loss of every step, and looks."""
    groups = started.groups + ([{"params": list(head.parameters()), "lr": HEAD_LR}] if head else [])
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    warm = max(1, form.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (form.steps - step) / max(1, form.steps - warm))
    )
    rows = batches(task.train, form.batch, run.seed)
    losses, looks = [], []
    torch.manual_seed(run.seed)  # of dropout
    for step in range(1, form.steps + 1):
        started.backbone.train()
        loss = task.loss(started.backbone, head, next(rows))
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 5))
        if step % max(1, form.steps // form.looks) == 0 or step == form.steps:
            looks.append({"step": step, **task.evaluate(started.backbone.eval(), head)})
    return losses, looks


def _drift(study: Study, run: Run, started: Started) -> dict[str, float]:
    """Mean norm(change) / norm(W) of W^Q and W^V, by `analyze --against` the merged or tuned model."""
    place = study.work / f"drift-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    started.backbone.save_pretrained(place / "trained")
    tuned = place / "trained"
    if ARMS[run.arm].init is not None:
        tuned = merge(started.base, place / "trained", place / "merged", base_dtype="float32").folder
    document = analyze(study.model, against=[tuned], output=place / "report").document
    found: dict[str, list[float]] = {}
    for matrix in document["matrices"]:
        found.setdefault(matrix["role"], []).append(matrix["changes"][0]["metrics"]["relative_change"] or 0.0)
    shutil.rmtree(place)
    return {role: sum(values) / len(values) for role, values in found.items()}


def _one_thread() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


if __name__ == "__main__":
    main()
