"""Text for encodings that lack it: marks in plain characters, names as escape sequences, and never an error."""

from __future__ import annotations

import io

import pytest

from ailora_tools.display import text


def encoded(value: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    text.settle_streams()
    stream.write(value)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "✔ 3 × 4 … ▁█ é 模 −1"),
        ("cp1252", "+ 3 × 4 … 18 é \\u6a21 -1"),
        ("ascii", "+ 3 x 4 ... 18 \\xe9 \\u6a21 -1"),
    ],
)
def test_marks_by_encoding(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoded("✔ 3 × 4 … ▁█ é 模 −1", encoding, monkeypatch) == shown


def test_bars_stay_as_wide_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoded(text.BARS, "ascii", monkeypatch) == "12345678"
