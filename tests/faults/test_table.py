"""The committed table is that of the committed counts, and nothing in it failed without a word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("table.py")
REPORTS = Path(__file__).parents[2] / "reports" / "faults"


def made_in(folder: Path, lines: str) -> tuple[str, str]:
    """Lines and page that the program makes of `lines`, in a copy of the place where it stands."""
    program = folder / "tests" / "faults" / "table.py"
    for path in (program, folder / "reports" / "faults" / "lines.jsonl"):
        path.parent.mkdir(parents=True)
    program.write_text(TABLE.read_text())
    reports = folder / "reports" / "faults"
    (reports / "lines.jsonl").write_text(lines)
    subprocess.run([sys.executable, program], check=True, capture_output=True)
    return (reports / "lines.jsonl").read_text(), (reports / "README.md").read_text()


def test_the_committed_table_is_made_of_its_lines(tmp_path: Path) -> None:
    lines, page = ((REPORTS / name).read_text() for name in ("lines.jsonl", "README.md"))
    assert made_in(tmp_path, lines) == (lines, page)
    for record in map(json.loads, lines.splitlines()):
        assert record["tries"] == record["survived"] + record["failed"] > 0
        assert not record["failed"] or record["note"], f"{record['area']}: failures that nothing explains"


def test_lines_of_one_area_are_added_up(tmp_path: Path) -> None:
    one = {"area": "b", "tries": 3, "survived": 2, "failed": 1, "note": "x | y"}
    other = {**one, "tries": 1, "survived": 1, "failed": 0, "note": ""}
    lines, page = made_in(tmp_path, "".join(json.dumps(line) + "\n" for line in (one, {**one, "area": "a"}, other)))
    assert [json.loads(line)["tries"] for line in lines.splitlines()] == [3, 4]
    assert "| b | 4 | 3 | 1 | x \\| y |" in page and "| all | 7 | 5 | 2 |  |" in page
