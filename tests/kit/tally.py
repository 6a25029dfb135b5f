"""Counts of tries for `make faults`: see tests/faults/table.py, which makes a page of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

REPORT = "FAULTS_REPORT"  # the file that takes a line for every count


@dataclass
class Tally:
    """Counts of one kind of try; `failures` say where and which rule."""

    area: str
    tries: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, where: str, broken: Sequence[str]) -> None:
        """One try, and the rules that it broke."""
        self.tries += 1
        if broken:
            self.failures.append(f"{where}: {'; '.join(broken)}")

    def close(self) -> None:
        """Report the counts where a file is named for them; AssertionError if anything failed."""
        failed = len(self.failures)
        line = {"area": self.area, "tries": self.tries, "survived": self.tries - failed, "failed": failed, "note": ""}
        if os.environ.get(REPORT):
            with open(os.environ[REPORT], "a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"note": " | ".join(self.failures)[:2000]}) + "\n")
        assert self.tries and not self.failures, f"{failed} of {self.tries} failed\n" + "\n".join(self.failures)
