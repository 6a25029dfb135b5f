"""The course of a metric over the layers: all of them at any width, between the lowest and the highest."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from kit.families import build
from rich.cells import cell_len

from ailora_tools import Analysis, analyze
from ailora_tools.cli.course import bars, metric_lines, together
from ailora_tools.display.console import Console
from ailora_tools.display.text import BARS


@pytest.mark.parametrize("layers", [1, 2, 30, 32, 80, 126])
@pytest.mark.parametrize("width", [20, 36, 42, 82, 162])
def test_all_layers_find_room(layers: int, width: int) -> None:
    drawn = bars([[float(layer) for layer in range(layers)]], width)
    shared = together([[0.0] * layers], width)
    assert len(drawn) == -(-layers // shared) <= width and (shared == 1 or layers > width)
    assert list(drawn) == sorted(drawn), "rising values make rising bars"


def test_from_the_lowest_to_the_highest() -> None:
    assert bars([[0.404, 0.42, 0.455]], 40) == "▁▃█"
    assert bars([[0.3, 0.3]], 40) == "▅▅"
    assert bars([[None, 1.0, 2.0, None]], 40) == "·▁█·"


def test_a_bar_for_several_layers_is_their_mean_on_the_scale_of_all() -> None:
    assert bars([[0.0, 8.0, 8.0, 8.0]], 2) == "▅█"


def test_stacks_are_apart_and_share_no_bar() -> None:
    assert bars([[0.0, 0.0, 0.0], [1.0, 1.0]], 40) == "▁▁▁ ██"
    assert bars([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], 5) == "▁▁ ██"


def test_stacks_of_one_layer_each_are_a_row() -> None:
    assert bars([[float(stack)] for stack in range(8)], 40) == BARS


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    root: Path = tmp_path_factory.mktemp("whisper")
    build("whisper").save_pretrained(root / "model")
    return analyze(root / "model", against=[root / "model"], rank=2, output=root / "report")


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_or_cut(width: int, whisper: Analysis) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width)
    for line in metric_lines(whisper.document, width):
        console.print(line)
    text = file.getvalue()
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "decoder, decoder cross, encoder" in " ".join(text.split())
    beside = [line for line in text.splitlines() if line.startswith("  W^")]
    assert len(beside) == 2 * 5 and all((line[-1] in BARS) == (width > 60) for line in beside)
