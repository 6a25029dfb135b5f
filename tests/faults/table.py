"""Write reports/faults/README.md from the counts that `make faults` collected beside it.

`python tests/faults/table.py` sums lines of one area, puts them in order, and writes the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "reports" / "faults"
LINES = FOLDER / "lines.jsonl"
COUNTS = ("tries", "survived", "failed")
HEAD = """# What was tried to break it

`make faults` stops runs at every point at which something can go wrong, and looks at what is left. A try has survived
if nothing incomplete stands under the final name, the run ended with success or one named error, inputs and whatever
lies beside the output are untouched, and the next run gives the bytes of an undisturbed one and leaves nothing behind.

"""
COLUMNS = "| area | tries | survived | failed | what failed |\n| --- | ---: | ---: | ---: | --- |\n"


def summed(lines: Iterable[str]) -> list[dict[str, Any]]:
    """One record an area, by name: counts added up, notes one after the other."""
    areas: dict[str, dict[str, Any]] = {}
    for line in filter(str.strip, lines):
        record = json.loads(line)
        total = areas.setdefault(record["area"], {"area": record["area"], **dict.fromkeys(COUNTS, 0), "note": ""})
        for count in COUNTS:
            total[count] += record[count]
        notes = dict.fromkeys([*filter(None, total["note"].split(" | ")), *filter(None, record["note"].split(" | "))])
        total["note"] = " | ".join(notes)
    return [areas[area] for area in sorted(areas)]


def table(records: Iterable[dict[str, Any]]) -> str:
    """The page."""
    rows = list(records)
    total = {"area": "all", **{count: sum(row[count] for row in rows) for count in COUNTS}, "note": ""}
    body = "".join(
        f"| {row['area']} | {' | '.join(f'{row[count]:,}' for count in COUNTS)} | {cell(row['note'])} |\n"
        for row in (*rows, total)
    )
    return HEAD + COLUMNS + body


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    found = summed(LINES.read_text(encoding="utf-8").splitlines())
    LINES.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found), encoding="utf-8")
    (FOLDER / "README.md").write_text(table(found), encoding="utf-8")
    print(table(found))
