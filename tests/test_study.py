"""The study runs, goes on where it stopped, and says no more than its lines do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_models import ROOT, minilm

sys.path.insert(0, str(ROOT / "examples" / "study"))

from report import conclusion, markdown, outcomes, page


def line(arm: str, lr: float, seed: int, loss: float, first: float = 0.9) -> dict[str, object]:
    looks = [{"step": 5, "loss": first, "score": 0.4}, {"step": 10, "loss": loss, "score": 1 - loss}]
    return {
        "arm": arm, "lr": lr, "seed": seed, "steps": 10, "batch": 4, "test": 100, "trained": 7, "looks": looks,
        "final": looks[-1], "other_text": {"before": 0.0, "after": 0.5}, "drift": {"q": 0.2, "v": 0.1},
    }  # fmt: skip


def ladder(arm: str, losses: dict[float, float], first: float = 0.9) -> list[dict[str, object]]:
    """Three seeds at every learning rate."""
    return [line(arm, lr, seed, loss + 0.01 * seed, first) for lr, loss in losses.items() for seed in range(3)]


SEVERAL = [
    *ladder("lora", {1e-4: 0.8, 1e-3: 0.6, 1e-2: 0.7}),
    *ladder("ailora", {1e-4: 0.5, 1e-3: 0.7}, 0.55),
    *ladder("pissa", {1e-3: 0.505}),
    line("pissa", 1e-2, 0, 0.1),
]


def test_the_best_rate_is_chosen_where_all_seeds_are_and_the_table_says_so() -> None:
    found = {one.arm: one for one in outcomes(SEVERAL)}
    assert list(found) == ["ailora", "pissa", "lora"]
    assert found["lora"].lr == 1e-3 and not found["lora"].edge and found["ailora"].edge
    assert found["pissa"].lr == 1e-3, "one lucky seed decides nothing"
    assert found["ailora"].reached == 5 and found["lora"].reached == 10
    assert "| ailora | 7 | 0.0001 (end of the ladder) | 0.510 (0.500 to 0.520) |" in markdown(
        outcomes(SEVERAL), SEVERAL
    )


def test_the_conclusion_tells_a_difference_from_none() -> None:
    said = "\n".join(conclusion(outcomes(SEVERAL), SEVERAL))
    assert "ailora against lora" in said and "lower in every seed" in said
    assert "ailora against pissa" in said and "no difference shown" in said
    assert "One seed" not in said
    single = [entry for entry in SEVERAL if entry["seed"] == 0]
    assert "One seed" in "\n".join(conclusion(outcomes(single), single))


def test_the_page_stands_alone() -> None:
    text = page("minilm", outcomes(SEVERAL), SEVERAL)
    assert "src=" not in text.split("<script")[0] and "Plotly.newPlot" in text


@pytest.mark.slow
def test_a_study_runs_and_goes_on(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    model = minilm(tmp_path / "model")
    command = [
        sys.executable,
        "-m",
        "examples.study",
        "minilm",
        model,
        tmp_path / "work",
        "--steps",
        "2",
        "--out",
        lines,
    ]

    def study(arms: str) -> list[dict[str, object]]:
        subprocess.run(
            [*command, "--arms", arms],
            check=True,
            cwd=ROOT,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return [json.loads(text) for text in lines.read_text().splitlines()]

    first = study("bitfit")
    assert len(first) >= 4 and {entry["arm"] for entry in first} == {"bitfit"}
    both = study("bitfit,ailora-balanced")
    assert both[: len(first)] == first and len(both) >= len(first) + 4
    for entry in both:
        if entry["arm"] == "bitfit":
            assert entry["drift"] == {"q": 0.0, "v": 0.0}
        else:
            assert entry["drift"]["q"] > 0 and entry["drift"]["v"] > 0
    assert "| bitfit |" in lines.with_suffix(".md").read_text()
    assert lines.with_suffix(".html").stat().st_size > 1_000_000
