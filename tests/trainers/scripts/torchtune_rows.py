"""A dataset and a stand-in for a tokenizer that torchtune's configs can name: rows of tokens are tokens already."""

from __future__ import annotations

import json
from pathlib import Path


class Tokens:
    """Nothing to encode; the recipes ask for the token that pads."""

    pad_id = 0


def rows(tokenizer: Tokens, file: str) -> list[dict[str, list[int]]]:
    """Every row with itself as the labels."""
    return [{"tokens": row, "labels": list(row)} for row in json.loads(Path(file).read_text())]
