"""The front matter of a card: YAML between two lines of `---`, by which the Hub files a repository.

Keys and their values as in https://huggingface.co/docs/hub/model-cards; what `huggingface_hub` reads (RepoCard).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError

_LONGEST = 1 << 20  # characters; the largest in use, with thousands of results, have half as many
_BLOCK = re.compile(r"\s*---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_MODEL = ("base_model", "base_model_revision")


def split(text: str) -> tuple[str, str]:
    """The YAML and the text below it, which is all where there is none."""
    found = _BLOCK.match(text)
    return (found["yaml"], text[found.end() :]) if found else ("", text)


def fields(yaml_text: str) -> dict[str, Any]:
    """The mapping, every scalar a string as it stands: Norwegian, `no`, is no boolean here.

    CheckpointError where it is too large, no YAML, or no mapping.
    """
    import yaml  # type: ignore[import-untyped]

    if len(yaml_text) > _LONGEST:
        raise CheckpointError(f"the front matter has {len(yaml_text):,} characters, expected {_LONGEST:,} at most")
    try:
        found = yaml.load(yaml_text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f" in line {line + 2}" if line is not None else ""
        raise CheckpointError(f"the front matter is no YAML{at}") from None
    if found in (None, ""):
        return {}
    if not isinstance(found, dict):
        raise CheckpointError("the front matter is no mapping of YAML")
    return {key: value for key, value in found.items() if isinstance(key, str)}


def joined(front: Mapping[str, Any], text: str) -> str:
    """A card; keys in the order given, those without a value left out."""
    return f"---\n{_dumped(front)}---\n\n{text}"


def set_base_model(card: str, repo: str, revision: str | None = None) -> str:
    """A card with `base_model: repo` and `base_model_revision: revision` (none for None) in its front matter, which is
    made where there is none. Every other character stays as it was."""
    found = _BLOCK.match(card)
    stated = _dumped({"base_model": repo, "base_model_revision": revision})
    if found is None:
        return f"---\n{stated}---\n\n{card}"
    kept = "".join(_without(re.findall(r"[^\n]*\n", found["yaml"]), _MODEL))
    stated = stated.replace("\n", "\r\n") if found[0].endswith("\r\n") else stated
    return card[: found.start("yaml")] + stated + kept + card[found.end("yaml") :]


def _without(lines: list[str], keys: tuple[str, ...]) -> list[str]:
    """The lines of YAML without those of some keys: the line of a key and what is indented or listed below it."""
    kept, inside = [], False
    for line in lines:
        if line.strip() and not line[0].isspace() and line[0] not in "-#":
            inside = line.partition(":")[0].strip("\"' ") in keys
        if not inside or not line.strip() or line[0] == "#":
            kept.append(line)
    return kept


def _dumped(front: Mapping[str, Any]) -> str:
    import yaml

    stated = {key: value for key, value in front.items() if value}
    return str(yaml.safe_dump(stated, sort_keys=False, allow_unicode=True, width=1 << 20)) if stated else ""
