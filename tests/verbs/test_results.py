"""What verbs give back to Python: one line in an interpreter, a table in a notebook, rows for pandas, figures."""

from __future__ import annotations

import builtins
import csv
import os
import pty
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from kit.adapters import prepare

import ailora_tools
from ailora_tools import AiloraError, analyze, bitfit, convert, export, extract, inspect_checkpoint, merge, verify
from ailora_tools.errors import OptionError

NAMES = (
    "inspection",
    "analysis",
    "initialization",
    "verification",
    "conversion",
    "merge",
    "extraction",
    "exported",
    "biases",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One result of every verb, on a tiny BERT; the fine-tune is the merged one."""
    root = tmp_path_factory.mktemp("results")
    trained, _ = prepare("bert with a head", root)
    start = ailora_tools.initialize(root / "model", 2, output=root / "start")
    merged = merge(root / "init", trained, root / "merged")
    return {
        "inspection": inspect_checkpoint(root / "model"),
        "analysis": analyze(root / "model", against=[root / "merged"], rank=2, output=root / "report"),
        "initialization": start,
        "verification": verify(start.folder),
        "conversion": convert(trained, root / "init", root / "plain"),
        "merge": merged,
        "extraction": extract(root / "model", root / "merged", root / "lora"),
        "exported": export(root / "plain", "diffusers", root / "exported", component="text_encoder"),
        "biases": bitfit(root / "model", root / "biases"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_one_short_line(name: str, results: dict[str, Any]) -> None:
    text = repr(results[name])
    assert text.startswith(f"<{type(results[name]).__name__} ") and len(text) < 300 and "\n" not in text


def test_what_results_hold_is_short_too(results: dict[str, Any]) -> None:
    for held in (results["inspection"].plan, results["inspection"].checkpoint, results["initialization"].manifest):
        assert len(repr(held)) < 2000


class Balanced(HTMLParser):
    """Fails on a tag that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_gets_html_without_a_script(name: str, results: dict[str, Any]) -> None:
    html = results[name]._repr_html_()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == [] and "<script" not in html and len(html) < 20_000


def test_an_analysis_shows_its_findings_and_a_map_of_all_matrices(results: dict[str, Any]) -> None:
    analysis = results["analysis"]
    html = analysis._repr_html_()
    assert html.count("<li>") == min(6, len(analysis.document["findings"]))
    assert html.count("<rect") == len(analysis.document["matrices"]) and "relative change" in html


@pytest.mark.parametrize("name", NAMES)
def test_a_data_frame_has_the_rows(name: str, results: dict[str, Any]) -> None:
    frame = results[name].to_dataframe()
    assert len(frame) == len(results[name].rows()) > 0 and set(results[name]._columns) <= set(frame.columns)


def test_the_data_frame_of_an_analysis_is_metrics_csv(results: dict[str, Any]) -> None:
    with open(results["analysis"].folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = results["analysis"].rows()
    assert [list(row) for row in rows] == [list(row) for row in found]
    assert [row["relative_change"] for row in rows] == [
        "" if row["relative_change"] is None else str(row["relative_change"]) for row in found
    ]


def test_without_pandas_it_says_what_to_do(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *others: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AiloraError, match=r"pandas is not installed.\npip install pandas, or take rows"):
        results["analysis"].to_dataframe()


def test_every_figure_of_the_page_is_one_that_plotly_takes(results: dict[str, Any]) -> None:
    analysis = results["analysis"]
    assert "spectra-q" in analysis.figures
    for name in analysis.figures:
        assert analysis.figure(name).data, name


def test_a_map_is_drawn_of_any_metric(results: dict[str, Any]) -> None:
    analysis = results["analysis"]
    shown = analysis.figure("map-weights", "alpha")
    by_place = {(row["role"], row["layer"]): row["alpha"] for row in analysis.rows() if not row["against"]}
    drawn = {text for line in shown.data[0].text for text in line if text}
    assert len(drawn) <= len(by_place) and "α" in shown.layout.title.text
    for name, metric in (("spectra-x", None), ("spectra-q", "alpha"), ("map-weights", "beta")):
        with pytest.raises(OptionError):
            analysis.figure(name, metric)


def test_an_analysis_that_was_read_again_has_the_same_figures(results: dict[str, Any]) -> None:
    analysis = results["analysis"]
    again = ailora_tools.Analysis.read(analysis.folder)
    assert again.figures == analysis.figures and repr(again) == repr(analysis)


def test_completion_offers_the_public_names() -> None:
    assert set(ailora_tools.__all__) <= set(dir(ailora_tools)) and "_HOMES" not in dir(ailora_tools)
    assert ailora_tools.__version__ == subprocess.run(
        [sys.executable, "-m", "ailora_tools", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_drawn_where_there_is_a_terminal(terminal: bool, results: dict[str, Any], tmp_path: Path) -> None:
    model = results["inspection"].checkpoint.location
    code = (
        f"import ailora_tools; ailora_tools.analyze({model!r}, rank=2, output={str(tmp_path / 'o')!r}, progress=True)"
    )
    leader, follower = pty.openpty()
    errors = follower if terminal else subprocess.PIPE
    done = subprocess.run([sys.executable, "-c", code], stderr=errors, env={**os.environ, "TERM": "xterm"})
    os.close(follower)
    drawn = os.read(leader, 1 << 20).decode() if terminal else (done.stderr or b"").decode()
    os.close(leader)
    assert done.returncode == 0 and ("Opening" in drawn) == terminal
