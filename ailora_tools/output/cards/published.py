"""A card as it is on the Hub: what it tells to load and to run fits the folder that `hf download` leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LOAD = re.compile(r"^## Load", re.MULTILINE)


def published_card(raw: bytes, places: Mapping[str, str], repository: str) -> bytes:
    """README.md with names in the place of paths, and how the folder gets that name; as it is where it has none."""
    text = raw.decode("utf-8", "surrogateescape")
    known = "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
    text = re.sub(rf"({known})(?![\w.-])", lambda found: places[found[0]], text)
    changed = text.encode("utf-8", "surrogateescape")
    if changed == raw:
        return raw
    told = f"Download it first: `hf download {repository} --local-dir {repository.partition('/')[2]}`.\n\n"
    return _LOAD.sub(lambda found: told + found[0], text, count=1).encode("utf-8", "surrogateescape")
