"""The progress bar: one line at every width, with what is left, what is past and how fast it goes."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from ailora_tools.display import bar as drawing
from ailora_tools.display import pace as pacing
from ailora_tools.display.bar import Bar, clock
from ailora_tools.display.console import Console

WIDTHS = (20, 40, 80, 120)


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Seconds go by when the test says so."""
    now = [100.0]
    monkeypatch.setattr(pacing, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def drawn(bar: Bar, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=True, color_system=None).print(bar.line())
    return file.getvalue()


def local(wait: Callable[[float], None]) -> Bar:
    """100 of 200 matrices of 1 MB in 10 seconds."""
    bar = Bar()
    bar.start("Decomposing", 200, 0)
    wait(10)
    for layer in range(100):
        bar.advance(f"v encoder {layer}", 1_000_000)
    return bar


def far(wait: Callable[[float], None], steps: int) -> Bar:
    """30 of 300 MB in 10 seconds."""
    arrived = [0]
    bar = Bar(told=False)
    bar.reading(lambda: arrived[0], 300_000_000, 900_000_000)
    bar.start("Analysing", 60, 0)
    drawn(bar, 120)
    wait(10)
    arrived[0] = 30_000_000
    for layer in range(steps):
        bar.advance(f"q {layer}")
    return bar


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("state", ["before anything", "local", "far, no step yet", "far"])
def test_it_is_one_line_and_no_wider_than_the_terminal(
    width: int, state: str, pass_time: Callable[[float], None]
) -> None:
    bar = {"before anything": Bar, "local": lambda: local(pass_time), "far": lambda: far(pass_time, 10),
           "far, no step yet": lambda: far(pass_time, 0)}[state]()  # fmt: skip
    text = drawn(bar, width)
    assert text.count("\n") == 1 and text.strip() and cell_len(text.rstrip("\n")) <= width


def test_local_files_have_a_rate_and_times_are_named(pass_time: Callable[[float], None]) -> None:
    text = drawn(local(pass_time), 120)
    assert all(part in text for part in ("100/200", "0:10 left", "0:10 so far", "10 MB/s", "v encoder 99"))


def test_time_left_is_known_before_the_first_step_from_bytes(pass_time: Callable[[float], None]) -> None:
    text = drawn(far(pass_time, 0), 120)
    assert all(part in text for part in ("0/60", "1:30 left", "30 MB of 300 MB", "3 MB/s"))


def test_the_slower_of_steps_and_bytes_says_how_long(pass_time: Callable[[float], None]) -> None:
    assert "1:30 left" in drawn(far(pass_time, 30), 120)  # by steps alone it would be 0:10
    assert "9:50 left" in drawn(far(pass_time, 1), 120)


def test_what_was_done_before_does_not_make_it_faster(pass_time: Callable[[float], None]) -> None:
    bar = Bar()
    bar.start("Analysing", 100, 90)
    pass_time(5)
    bar.advance("q 0")
    assert "0:45 left" in drawn(bar, 120)


def test_what_does_not_fit_is_left_out_and_never_cut(pass_time: Callable[[float], None]) -> None:
    bar = local(pass_time)
    whole = {tell(bar.pace) for _, tell in drawing.PIECES} | {"Decomposing", bar.label, ""}
    for width in range(34, 130):
        words = drawn(bar, width).replace("━", " ").replace("╸", " ").replace("╺", " ").split("  ")
        assert {word.strip() for word in words} <= whole | {f"10 MB/s {bar.label}"}


def test_hours() -> None:
    assert [clock(seconds) for seconds in (0.4, 65, 3725)] == ["0:00", "1:05", "1:02:05"]
