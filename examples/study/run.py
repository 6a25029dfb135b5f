"""Does the asymmetric start help? Every method at learning rates of its own, on real models and text.

    python -m examples.study minilm MODEL WORK [--form full] [--workers 2]
    python -m examples.study smollm2 MODEL WORK

MODEL is a folder with the model, WORK keeps texts and starts. One JSON line a run goes to
reports/study/<task>-<form>.jsonl; a run that is there already is not repeated, so that the study can be stopped and
gone on with. First every arm at seed 0 over its ladder of learning rates, which is climbed further while the best one
is at an end; then more seeds at the best learning rate and its neighbours, and yet more at the best one (form full).
`report.py` tells the outcome.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arms import ARMS, LADDER
from tasks import TASKS
from train import FORMS, Form, Place, Run, one

REPORTS = Path(__file__).resolve().parents[2] / "reports" / "study"
Losses = Mapping[tuple[float, int], float]  # (learning rate, seed) -> dev loss at the end


def main() -> Path:
    """All the runs; the file with the lines."""
    asked = _asked()
    form = FORMS[asked.task, asked.form]
    if asked.steps:
        form = replace(form, steps=asked.steps, dev=20, test=20, looks=1)
    out = asked.out or REPORTS / f"{asked.task}-{asked.form}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    place = Place(asked.task, asked.model, asked.work)
    place.open(form)  # texts are there before workers start
    Study(place, form, out).complete(asked.arms.split(","), asked.workers)
    return out


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--form", choices=["quick", "full"], default="quick")
    parser.add_argument("--arms", help="Only these, such as lora,ailora.")
    parser.add_argument("--workers", type=int, default=2, help="Runs at a time, one thread each.")
    parser.add_argument("--steps", type=int, help="Instead of those of the form, to try the study itself.")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.arms = asked.arms or ",".join(TASKS[asked.task].arms or ARMS)
    return asked


@dataclass(frozen=True)
class Study:
    """Asks for runs until there are none to ask for, and keeps their lines."""

    place: Place
    form: Form
    out: Path

    def complete(self, arms: Sequence[str], workers: int) -> None:
        """Every arm, in waves of runs that do not depend on each other."""
        with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
            try:
                while runs := [run for arm in arms for run in next_runs(arm, self.losses(arm), self.form)]:
                    self._work_on(runs, pool)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # or a Ctrl-C would wait for all runs of the wave
                raise

    def losses(self, arm: str) -> Losses:
        """Dev losses of the runs that are there. SystemExit if they are of a study of another size."""
        lines = [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []
        if other := next((line["form"] for line in lines if line["form"] != asdict(self.form)), None):
            sys.exit(f"{self.out} holds runs of another form, {other}, not {asdict(self.form)}: give another --out.")
        return {(line["lr"], line["seed"]): dev_loss(line) for line in lines if line["arm"] == arm}

    def _work_on(self, runs: Sequence[Run], pool: ProcessPoolExecutor) -> None:
        waiting = [pool.submit(one, self.place, self.form, run) for run in runs]
        for number, future in enumerate(as_completed(waiting), 1):
            line = future.result()
            with self.out.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            told = f"{line['arm']} lr {line['lr']:g} seed {line['seed']}: {line['test']}, {line['seconds']} s"
            print(f"{number}/{len(runs)} {told}", flush=True)


def dev_loss(line: Mapping[str, Any]) -> float:
    """What learning rates are chosen by; infinite for a run that diverged."""
    loss = line["dev"]["loss"]
    return math.inf if loss is None else float(loss)


def next_runs(arm: str, done: Losses, form: Form) -> list[Run]:
    """What is to be run next, given what was: the first stage that is not complete; empty at the end."""
    for stage in _stages(arm, done, form):
        if lacking := [run for run in stage if (run.lr, run.seed) not in done]:
            return lacking
    return []


def _stages(arm: str, done: Losses, form: Form) -> Iterator[list[Run]]:
    """Each is only asked for when the one before is complete."""
    yield [Run(arm, lr, 0) for lr in ARMS[arm].first]
    yield [Run(arm, lr, 0) for lr in around(best(done, 1))]
    seeds = range(form.seeds)
    yield [Run(arm, best(done, 1), seed) for seed in seeds]
    yield [Run(arm, lr, seed) for lr in around(best(done, 1)) for seed in seeds]
    yield [Run(arm, lr, seed) for lr in around(best(done, form.seeds)) for seed in seeds]
    yield [Run(arm, best(done, form.seeds), seed) for seed in range(form.best_seeds)]


def best(done: Losses, seeds: int) -> float:
    """The learning rate with the lowest median dev loss over the first `seeds` seeds, of those that have them all."""
    rates = {lr for lr, _ in done}
    found = {lr: [done[lr, seed] for seed in range(seeds) if (lr, seed) in done] for lr in rates}
    whole = {lr: median(losses) for lr, losses in found.items() if len(losses) == seeds}
    return min(sorted(whole), key=lambda lr: whole[lr])


def around(lr: float) -> tuple[float, ...]:
    """The learning rate and those beside it on the ladder, which ends somewhere."""
    at = LADDER.index(lr)
    return LADDER[max(0, at - 1) : at + 2]


def _one_thread() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
