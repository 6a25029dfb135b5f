"""Cards of what is handed on: adapters, merged models, exports; front matter, what it is, and the source's own card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .front import joined
from .source import KEPT, TAG, Source

ADAPTER, FINETUNE = "adapter", "finetune"  # of the Hub's four relations to a base model


def adapter_card(
    name: str, source: Source, told: str, *, tags: Sequence[str] = (), library: str | None = "peft"
) -> str:
    """README.md of a folder with an adapter for `source` and none of its weights. name: of the folder, the title.
    told: Markdown, what it is and how it is used. library: whose files they are, by the Hub's names."""
    front = front_matter(source, ADAPTER, library, ["lora", *tags], beside=False)
    return with_source(joined(front, f"# {name}\n\n{told.strip()}\n"), source)


def merged_card(name: str, source: Source, told: str, *, library: str | None) -> str:
    """README.md of a whole model that was made from `source`, with the other files of it."""
    front = front_matter(source, FINETUNE, library, ["merged"], beside=True)
    return with_source(joined(front, f"# {name}\n\n{told.strip()}\n"), source)


def front_matter(
    source: Source, relation: str | None, library: str | None, tags: Sequence[str], *, beside: bool
) -> dict[str, Any]:
    """By the Hub's conventions; of a source that is only a path no base model is named. relation: None for what
    is no model. beside: whether the files of the source, such as its LICENSE, are in the folder."""
    base = {"base_model": source.repo, "base_model_revision": source.revision, "base_model_relation": relation}
    return {
        **(base if source.repo else {}),
        "library_name": library,
        **source.licence(beside=beside),
        **{key: source.fields.get(key) for key in ("language", "pipeline_tag")},
        "tags": list(dict.fromkeys([TAG, *tags])),
    }


def with_source(card: str, source: Source) -> str:
    """`card`, and below it the source's own, under a heading of its own."""
    return f"{card}\n{KEPT}\n\n## The card of {source.name}\n\n{source.text}\n" if source.text else card


def library_of(config: Mapping[str, Any], source: Source) -> str | None:
    """The Hub's name of what loads a whole model: what the source says, else what its config.json is of."""
    if "library_name" in source.fields:
        return str(source.fields["library_name"])
    if "pretrained_cfg" in config and "architecture" in config:
        return "timm"
    if "_class_name" in config:
        return "diffusers"
    return "transformers" if config else None
