"""The study asks for the right runs, goes on where it stopped, and says no more than its lines do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import plotly.graph_objects as go
import pytest
from kit.real_models import ROOT, first_layers, minilm

sys.path.insert(0, str(ROOT / "examples" / "study"))

from arms import ARMS, LADDER
from conclusion import ASKED, TITLES, conclusion
from outcome import contest, outcomes
from report import COLOURS, markdown, page
from run import Study, dev_loss, next_runs
from tasks import TASKS, Text, batches
from train import FORMS, Form, Place

from ailora_tools.report.packed import unpacked

FORM = {"steps": 10, "batch": 4, "train": 40, "dev": 20, "test": 100, "looks": 2, "seeds": 3, "best_seeds": 5}


def line(arm: str, lr: float, seed: int, loss: float | None, first: float = 0.9) -> dict[str, object]:
    """Of one run whose test loss is 0.1 above its dev loss."""
    looks = [{"step": 0, "loss": 1.0, "score": 0}, {"step": 5, "loss": first, "score": 0}]
    looks.append({"step": 10, "loss": loss, "score": 0.5})
    return {
        "arm": arm, "lr": lr, "seed": seed, "task": "minilm", "rank": 8, "form": FORM, "trained": 7, "looks": looks,
        "dev": looks[-1], "test": {"loss": None if loss is None else loss + 0.1, "score": 0.75},
        "other_text": {"before": 0.0, "after": 0.5}, "seconds": 60.0, "versions": {"torch": "2"},
        "drift": {"q": 0.1, "v": 0.2} if seed == 0 else None,
    }  # fmt: skip


def ladder(arm: str, losses: dict[float, float], first: float = 0.9) -> list[dict[str, object]]:
    """Three seeds at every learning rate, each 0.01 above the one before."""
    return [line(arm, lr, seed, loss + 0.01 * seed, first) for lr, loss in losses.items() for seed in range(3)]


SEVERAL = [
    *ladder("lora", {1e-4: 0.8, 1e-3: 0.6, 1e-2: 0.7}),
    *ladder("ailora", {1e-4: 0.5, 1e-3: 0.7}, 0.55),
    *ladder("pissa", {1e-3: 0.505}),
    line("pissa", 1e-2, 0, 0.1),
    *ladder("full", {1e-4: 0.65, 1e-3: 0.66}),
]


def test_the_best_rate_is_chosen_on_dev_texts_where_all_seeds_are() -> None:
    found = {one.arm: one for one in outcomes(SEVERAL)}
    assert list(found) == ["ailora", "pissa", "lora", "full"]
    assert found["lora"].lr == 1e-3 and not found["lora"].edge and found["ailora"].edge
    assert found["pissa"].lr == 1e-3, "one lucky seed decides nothing"
    assert list(found["lora"].loss.values()) == pytest.approx([0.7, 0.71, 0.72]), "judged on the test texts"
    assert found["ailora"].reached == [5, 5, 5] and found["lora"].reached == [10, 10, None]
    assert "| ailora | 7 | 0.0001 (end of the ladder) | 3 | 0.610 (0.600 to 0.620) |" in markdown(
        outcomes(SEVERAL), SEVERAL
    )


def test_a_run_that_diverged_is_the_worst_there_is() -> None:
    lines = [line("lora", 1e-3, 0, 0.5), line("lora", 1e-1, 0, None)]
    assert outcomes(lines)[0].lr == 1e-3 and dev_loss(lines[1]) == float("inf")
    assert "Infinity" not in page(outcomes(lines), lines).split("<script>")[0]


def test_the_conclusion_tells_a_difference_from_none() -> None:
    said = conclusion(outcomes(SEVERAL), SEVERAL)
    assert any("ailora against lora" in text and "lower throughout" in text and "1 of 10" in text for text in said)
    assert any("ailora against pissa" in text and "no difference shown" in text for text in said)
    assert any("lower throughout: ailora, pissa; higher throughout: full" in text for text in said)
    assert any("W^Q by 0.1 and W^V by 0.2" in text and "does not hold" in text for text in said)
    assert not any("One seed" in text for text in said)
    single = [entry for entry in SEVERAL if entry["seed"] == 0]
    assert any("One seed" in text for text in conclusion(outcomes(single), single))


def test_chance_is_that_of_all_orders() -> None:
    """Two arms of n seeds each lie apart in 2 of (2n over n) orders."""
    found = {one.arm: one for one in outcomes(SEVERAL)}
    assert contest(found["ailora"], found["lora"]).chance == pytest.approx(2 / 20)
    assert contest(found["ailora"], found["lora"]).lower == 3
    assert not contest(found["ailora"], found["pissa"]).apart


def test_the_page_stands_alone_and_its_figures_are_plotlys() -> None:
    text = page(outcomes(SEVERAL), SEVERAL)
    assert "src=" not in text.split("<script")[0] and len(text) > 1e6
    figures = unpacked(text)["figures"]
    assert set(figures) == {"losses", "rates", "curves", "other"}
    for figure in figures.values():
        go.Figure(figure)


def test_the_page_names_the_versions_of_all_runs() -> None:
    later = {**line("rlmo", 1e-3, 0, 0.5), "versions": {"torch": "3"}}
    lines = [*SEVERAL, later]
    assert "torch 2 and 3" in page(outcomes(lines), lines)


def test_everything_that_is_asked_is_an_arm() -> None:
    assert {arm for pair in ASKED for arm in pair} <= set(ARMS) == set(COLOURS)
    assert set(TITLES) == set(TASKS) == {task for task, _ in FORMS}
    assert all(len(arm.first) >= 4 and set(arm.first) <= set(LADDER) for arm in ARMS.values())


@pytest.mark.parametrize("bottom", [1e-5, 3e-4, 1e-3, 1e-1])
def test_the_ladder_is_climbed_to_the_best_rate_and_seeds_follow(bottom: float) -> None:
    """Losses that fall towards one rate: wherever that is, it and its neighbours end with three seeds, it with five."""
    form, done = Form(**FORM), {}
    while runs := next_runs("ailora", done, form):
        assert all((run.lr, run.seed) not in done for run in runs)
        done |= {(run.lr, run.seed): abs(LADDER.index(run.lr) - LADDER.index(bottom)) + run.seed for run in runs}
    seeds = {lr: [seed for rate, seed in done if rate == lr] for lr, _ in done}
    at = LADDER.index(bottom)
    assert len(seeds[bottom]) == 5
    assert all(len(seeds[lr]) == 3 for lr in LADDER[max(0, at - 1) : at + 2] if lr != bottom)
    assert len(seeds) >= 4


def test_batches_depend_on_the_seed_alone_and_hold_every_text_once() -> None:
    rows = [Text(tuple(range(1 + at % 7)), label=at) for at in range(96)]

    def epoch(seed: int) -> list[list[int]]:
        taken = batches(rows, 4, seed)
        return [[row.label for row in next(taken)] for _ in range(24)]

    assert epoch(0) == epoch(0) != epoch(1)
    assert sorted(label for batch in epoch(0) for label in batch) == list(range(96))
    assert sum(len({label % 7 for label in batch}) == 1 for batch in epoch(0)) > 6, "texts of like length together"


KEPT = sorted((ROOT / "reports" / "study").glob("*.jsonl"))


@pytest.mark.parametrize("path", KEPT)
def test_the_tables_that_are_kept_are_those_of_the_lines_that_are_kept(path: Path) -> None:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert path.with_suffix(".md").read_text() == markdown(outcomes(lines), lines)
    assert path.with_suffix(".png").exists() and path.name in (path.parent / "README.md").read_text()
    assert {entry["task"] for entry in lines} == {path.stem.split("-")[0]}
    starts = [entry["looks"][0]["loss"] for entry in lines if entry["seed"] == 0]
    assert max(starts) - min(starts) < 1e-4, "every method is the same model at step 0"


def test_what_is_told_elsewhere_is_of_the_lines_that_are_kept() -> None:
    lines = [json.loads(text) for text in (ROOT / "reports/study/minilm-full.jsonl").read_text().splitlines()]
    found = outcomes(lines)
    medians = {f"{value:.3f}" for one in found for value in (one.middle, median(one.other.values()))}
    for name, told in (("README.md", "does not promise that training"), ("examples/guide/methods.md", "start help?")):
        text = (ROOT / name).read_text(encoding="utf-8").partition(told)[2].partition("\n## ")[0]
        assert f"{len(lines)} runs" in " ".join(text.split())
        quoted = re.findall(r"\b0\.\d{3}\b", text)
        assert quoted and set(quoted) <= medians
    for name in ("reports/study/README.md", "examples/README.md"):
        assert f"{len({entry['arm'] for entry in lines})} methods" in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_study_runs_and_goes_on(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    model = first_layers(minilm(tmp_path / "whole"), tmp_path / "model", 2)
    command = [
        sys.executable, "-m", "examples.study", "minilm", model, tmp_path / "work", "--steps", "2", "--out", lines,
    ]  # fmt: skip

    def study(arms: str, workers: int) -> list[dict[str, object]]:
        subprocess.run(
            [*command, "--arms", arms, "--workers", str(workers)],
            check=True,
            cwd=ROOT,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return [json.loads(text) for text in lines.read_text().splitlines()]

    first = study("bitfit", 2)
    with pytest.raises(SystemExit, match="another form"):
        Study(Place("minilm", model, tmp_path / "work"), Form(**FORM), lines).complete(["bitfit"], 1)
    assert len(first) >= 4 and {entry["arm"] for entry in first} == {"bitfit"}
    both = study("bitfit,ailora-balanced", 1)
    assert both[: len(first)] == first and len(both) >= len(first) + 4
    for entry in both:
        assert entry["looks"][0]["loss"] == pytest.approx(first[0]["looks"][0]["loss"], abs=1e-5), "equal at step 0"
        if entry["arm"] == "bitfit":
            assert entry["drift"] == {"q": 0.0, "v": 0.0}
        else:
            assert entry["drift"]["q"] > 0 and entry["drift"]["v"] > 0
    assert "| bitfit |" in lines.with_suffix(".md").read_text()
    assert lines.with_suffix(".html").stat().st_size > 1_000_000
    if shutil.which("chromium"):
        assert lines.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
