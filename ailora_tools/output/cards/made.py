"""Cards of what `convert`, `merge` and `export` write, with the numbers of their results."""

from __future__ import annotations

from collections.abc import Sequence

from .compose import adapter_card, merged_card
from .source import Source


def converted_card(name: str, original: Source, modules: Sequence[tuple[int, float]]) -> str:
    """Of a plain LoRA; modules: rank of each, and norm(change - stored) / norm(change)."""
    rank, error = max((rank for rank, _ in modules), default=0), max((error for _, error in modules), default=0.0)
    told = (
        f"A plain LoRA for {original.title}, as it is: {len(modules)} modules, rank {rank}. It does to that model what "
        f"was trained on a start of `ailora-tools init`, with an error of at most {error:.1e} of the change of a "
        "matrix. Nothing has to be taken out of the model: load it with PEFT (`PeftModel.from_pretrained`), or in any "
        "server that takes LoRAs."
    )
    return adapter_card(name, original, told)


def merge_card(name: str, original: Source, changes: Sequence[float], restored: int, library: str | None) -> str:
    """Of a merged model; changes: norm(W' - W) / norm(W) of its tensors. restored: matrices that were in few bits."""
    few = f" {restored} matrices that were in few bits are plain numbers now." if restored else ""
    told = (
        f"{original.title} with an adapter merged into it by `ailora-tools merge`. {len(changes)} tensors of the base "
        f"were changed, by at most {max(changes, default=0.0):.2g} of their norm; all others are as they were.{few} It "
        "loads as that model does."
    )
    return merged_card(name, original, told, library=library)


def extracted_card(
    name: str, original: Source, tuned: Source, modules: Sequence[int], error: float, beyond: int | None
) -> str:
    """Of the LoRA between two models; modules: rank of each. error: what is left of the change of all. beyond: tensors
    that changed and are not in it, None where they were not looked for."""
    rest = f"{beyond} other tensors differ, which it does not hold" if beyond else "Nothing else differs"
    told = (
        f"The LoRA that turns {original.title} into {tuned.title}, cut out of the difference of their linear layers by "
        f"`ailora-tools extract`: {len(modules)} modules of rank {max(modules, default=0)} at most. {error:.2g} of the "
        f"norm of their change is left out. {rest if beyond is not None else 'What else differs was not looked at'}. "
        "Load it on the base with PEFT (`PeftModel.from_pretrained`)."
    )
    return adapter_card(name, original, told, tags=["extracted"])


def exported_card(name: str, original: Source, trainer: str, modules: int, load: str) -> str:
    """Of an adapter in the files of another trainer; load: how it is loaded there."""
    told = f"A LoRA in the files of {trainer}, written by `ailora-tools export`: {modules} modules.\n\n    {load}"
    if original.residual:
        told = (
            f"**Not for {original.name} itself**, of which it holds a part, but for the residual that `ailora-tools "
            f"init` left of it.\n\n{told}"
        )
    return adapter_card(name, original, told, library=trainer)
