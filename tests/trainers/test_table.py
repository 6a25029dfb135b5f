"""The committed table is that of the committed lines, and tells of every consumer that has a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("table.py")
REPORTS = Path(__file__).parents[2] / "reports" / "trainers"


def made_in(folder: Path, lines: str) -> tuple[str, str]:
    """Lines and page that the program makes of `lines`, in a copy of the place where it stands."""
    program, reports = folder / "tests" / "trainers" / "table.py", folder / "reports" / "trainers"
    program.parent.mkdir(parents=True)
    reports.mkdir(parents=True)
    program.write_text(TABLE.read_text())
    (reports / "lines.jsonl").write_text(lines)
    subprocess.run([sys.executable, program], check=True, capture_output=True)
    return (reports / "lines.jsonl").read_text(), (reports / "README.md").read_text()


def test_the_committed_table_is_made_of_its_lines(tmp_path: Path) -> None:
    lines, page = ((REPORTS / name).read_text() for name in ("lines.jsonl", "README.md"))
    assert made_in(tmp_path, lines) == (lines, page)
    for record in map(json.loads, lines.splitlines()):
        assert record["consumer"] and record["versions"], record
        assert record["outcome"] == "passed" or record["outcome"].startswith("wrong today: "), record
        assert record["numbers"] or record["outcome"] != "passed" or "refused" in record["ran"], record


def test_lines_are_put_in_order(tmp_path: Path) -> None:
    one = {"consumer": "b", "ran": "x|y", "versions": {"b": "1"}, "numbers": {"error": 1.234e-7, "loss": 2.5},
           "outcome": "passed", "date": "2026-01-02"}  # fmt: skip
    lines, page = made_in(tmp_path, "".join(json.dumps(line) + "\n" for line in (one, {**one, "consumer": "A"})))
    assert [json.loads(line)["consumer"] for line in lines.splitlines()] == ["A", "b"]
    assert "| b | b 1 | runs here | x\\|y | passed | error 1.2e-07, loss 2.5 | 2026-01-02 |" in page
    assert "| vLLM |  | read in code |" in page
