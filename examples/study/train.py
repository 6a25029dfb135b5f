"""One run of the study: start, train, evaluate, and measure what it changed. The outcome is one JSON line."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, RANK, Started, start
from tasks import HEAD_LR, TASKS, Task, batches
from torch import nn

from ailora_tools import analyze, merge


@dataclass(frozen=True)
class Form:
    """The size of a study: optimiser steps, texts a batch, texts to train on, to choose by and to judge by,
    looks at the dev texts on the way, seeds at the best learning rate and its neighbours, seeds at the best one."""

    steps: int
    batch: int
    train: int
    dev: int
    test: int
    looks: int
    seeds: int
    best_seeds: int


FORMS = {
    ("minilm", "quick"): Form(32, 16, 512, 100, 200, 2, 1, 1),
    ("minilm", "full"): Form(126, 32, 2016, 300, 1000, 6, 3, 5),
    ("smollm2", "quick"): Form(12, 4, 48, 20, 40, 2, 1, 1),
    ("smollm2", "full"): Form(48, 4, 192, 40, 120, 3, 3, 3),
}


@dataclass(frozen=True)
class Run:
    """One training. Everything that its outcome depends on, besides the form."""

    arm: str
    lr: float
    seed: int


@dataclass(frozen=True)
class Place:
    """Which task, the model's folder, and a folder for texts and starts."""

    task: str
    model: Path
    work: Path

    def open(self, form: Form) -> Task:
        """The task with its texts; read once a process."""
        return _opened(self, form.test, form.dev, form.train)


@cache
def _opened(place: Place, *sizes: int) -> Task:
    task: Task = TASKS[place.task](place.model, place.work / "texts", *sizes)
    return task


def one(place: Place, form: Form, run: Run) -> dict[str, Any]:
    """The line of this run. A loss that is no number is null there, and ends the training."""
    begun = time.monotonic()
    task, scratch = place.open(form), place.work / f"{place.task}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    started = start(ARMS[run.arm], place.model, scratch / "start", run.lr, run.seed, task.load)
    started.backbone.eval()  # no dropout
    head, other = task.head(run.seed), task.other_text(started.backbone)
    losses, looks = _train(form, run, task, started, head)
    line = {
        **asdict(run), "task": place.task, "rank": RANK, "form": asdict(form), "trained": started.trained,
        "losses": losses, "looks": looks, "dev": looks[-1],
        "test": _numbers(task.evaluate(started.backbone, head, task.split.test)),
        "other_text": _numbers({"before": other, "after": task.other_text(started.backbone)}),
        "drift": _drift(place.model, scratch, run, started) if run.seed == 0 else None,
        "seconds": round(time.monotonic() - begun, 1),
        "versions": {name: version(name) for name in ("ailora-tools", "torch", "peft", "transformers")},
    }  # fmt: skip
    shutil.rmtree(scratch, ignore_errors=True)
    return line


def _train(
    form: Form, run: Run, task: Task, started: Started, head: nn.Module | None
) -> tuple[list[float], list[dict[str, Any]]]:
    """AdamW without decay, a tenth of the steps to warm up, then linearly to 0: the loss of every step, and looks at
    the dev texts from step 0 on."""
    groups = started.groups + ([{"params": list(head.parameters()), "lr": HEAD_LR}] if head else [])
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    warm = max(1, form.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (form.steps - step) / max(1, form.steps - warm))
    )
    rows = batches(task.split.train, form.batch, run.seed)
    losses: list[float] = []
    looks = [_look(0, task, started, head)]
    for step in range(1, form.steps + 1):
        loss = task.loss(started.backbone, head, next(rows))
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        diverged = not math.isfinite(loss.item())
        if not diverged:
            losses.append(round(loss.item(), 5))
        if diverged or step % (form.steps // form.looks) == 0:
            looks.append(_look(step, task, started, head))
        if diverged:
            break
    return losses, looks


def _look(step: int, task: Task, started: Started, head: nn.Module | None) -> dict[str, Any]:
    return {"step": step, **_numbers(task.evaluate(started.backbone, head, task.split.dev))}


def _numbers(found: dict[str, float]) -> dict[str, float | None]:
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in found.items()}


def _drift(model: Path, scratch: Path, run: Run, started: Started) -> dict[str, float]:
    """Mean norm(change) / norm(W) of W^Q and W^V, by `analyze --against` the merged or tuned model."""
    started.backbone.save_pretrained(scratch / "trained")
    tuned = scratch / "trained"
    if ARMS[run.arm].init is not None:
        tuned = merge(started.base, tuned, scratch / "merged", base_dtype="float32").folder
    document = analyze(model, against=[tuned], output=scratch / "report").document
    found: dict[str, list[float]] = {}
    for matrix in document["matrices"]:
        found.setdefault(matrix["role"], []).append(matrix["changes"][0]["metrics"]["relative_change"] or 0.0)
    return {role: sum(values) / len(values) for role, values in found.items()}
