"""The code in the README.md of a folder, run as it stands."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from ailora_tools.output.cards.source import KEPT


def card_blocks(folder: Path) -> list[str]:
    """Every block of Python, in order; those of the source's own card are not ours."""
    ours = (folder / "README.md").read_text("utf-8").partition(KEPT)[0]
    return re.findall(r"^```python\n(.*?)^```$", ours, re.DOTALL | re.MULTILINE)


def run_card(folder: Path) -> dict[str, Any]:
    """The names that all blocks, one after the other, leave. Whatever PEFT warns of, a key that is missing, is left to
    the card's own code to find."""
    place: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in card_blocks(folder):
            exec(compile(text, str(folder / "README.md"), "exec"), place)
    return place
