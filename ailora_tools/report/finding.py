"""One finding: a sentence that says it, what supports it, and what kind of news it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Finding = dict[str, Any]
Kind = Literal["result", "none", "advice", "warning"]


def told(id: str, kind: Kind, headline: str, rest: str, numbers: Mapping[str, float]) -> Finding:
    """`headline` is what a reader in haste takes along; with `rest`, which starts with its own mark or space, it makes
    up the text. kind: "result", "none" (looked for and not seen), "advice" (something to do), "warning"."""
    return {"id": id, "kind": kind, "headline": headline, "text": f"{headline}{rest}", "numbers": dict(numbers)}


def _one_bracket(text: str) -> bool:
    """Whether the first bracket is closed by the last."""
    depths = [text[: at + 1].count("(") - text[: at + 1].count(")") for at in range(len(text) - 2)]
    return min(depths) > 0


def halves(finding: Mapping[str, Any]) -> tuple[str, str]:
    """Headline and rest, each to stand by itself; an analysis from before they were told apart is all headline."""
    text, headline = finding["text"], finding.get("headline") or finding["text"]
    rest = text.removeprefix(headline).strip(" ,:;") if text.startswith(headline) else text
    if rest.startswith("(") and rest.endswith(").") and _one_bracket(rest):
        rest = f"{rest[1:-2]}."
    return headline.removesuffix(".") + ".", rest[:1].upper() + rest[1:] if rest not in (".", "") else ""
