"""Cards of what `init` writes: what it is, how to load it, and how to get back to the original."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote
from typing import Any

from ...errors import listed
from ...methods import role_order, symbol
from ..about_grid import ON_ORIGINAL, grid_section
from ..manifest import ModuleRecord
from ..names import ADAPTER_FOLDER, CARD, OFFSET_FOLDER
from .compose import ADAPTER, FINETUNE, adapter_card, front_matter, with_source
from .facts import CardFacts
from .front import joined
from .training import frozen, fused, learning_rates, load_and_train

_POOLED = """## After training

A reads sums over groups of inputs (QA-LoRA), which PEFT computes on GPTQModel's layers alone and merges nowhere. It is
a plain LoRA of the same rank, for any server that has the quantised base, and merges into the 16-bit model:

    ailora-tools convert TRAINED --init {folder} -o plain-lora
    ailora-tools merge {base} plain-lora -o merged
"""


def model_card(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    """README.md of the folder; states the measured numbers of this very folder."""
    parts = [*_warning(facts), f"# {facts.folder.name}", _summary(facts, records), _layout(facts), _numbers(records)]
    parts += [load_and_train(facts)]
    parts += [grid_section(facts.grid, records, facts.loader.call)] if facts.grid else []
    parts += [_beside(facts), frozen(facts, records)]
    parts += [learning_rates(facts, records), fused(facts, records), _back(facts)]
    text = "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
    return with_source(joined(_front(facts), text), facts.original)


def start_cards(facts: CardFacts, records: Sequence[ModuleRecord]) -> dict[str, str]:
    """Name of the file -> card, of the folder and of the adapters in it."""
    told = {ADAPTER_FOLDER: _adapter_told(facts)} | ({OFFSET_FOLDER: _offset_told(facts)} if facts.has_offset else {})
    summary = _summary(facts, records)
    inner = {
        f"{name}/{CARD}": adapter_card(name, facts.original, f"{text}\n\n{summary}", tags=facts.tags)
        for name, text in told.items()
    }
    return {CARD: model_card(facts, records), **inner}


def _front(facts: CardFacts) -> dict[str, Any]:
    relation, library = (FINETUNE, facts.library) if facts.has_base else (ADAPTER, "peft")
    tags = [*["residual-base"] * facts.has_base, *facts.tags]
    return front_matter(facts.original, relation, library, tags, beside=facts.has_base)


def _warning(facts: CardFacts) -> list[str]:
    """What whoever finds the base without its adapter has to read first."""
    name = facts.original.name
    told = f"**Alone this is not {name}**: it lacks what the adapter in `{ADAPTER_FOLDER}/` holds."
    return [told] if facts.has_base else []


def _adapter_told(facts: CardFacts) -> str:
    name = facts.original.name
    if not (facts.has_base or facts.has_offset):
        return f"The start of an adapter for {name}. `{CARD}` in the folder around it shows how to load and train it."
    after = "is merged" if facts.dora else f"becomes a plain LoRA for {name}"
    after = f"What was trained {after} by `ailora-tools {'merge' if facts.dora else 'convert'}`."
    if facts.has_base:
        return (
            f"**Not for {name} itself**, where what was moved into this adapter would count twice, but for the "
            f"residual base in the folder around it, whose `{CARD}` shows how to load and train the two. {after}"
        )
    return (
        f"**It holds a part of {name}**, which has to be taken out of that model when it is loaded: `{CARD}` in the "
        f"folder around it shows how. {after}"
    )


def _offset_told(facts: CardFacts) -> str:
    return (
        f"**Nothing by itself**: `{ADAPTER_FOLDER}` with the other sign. Frozen beside that one it takes out of "
        f"{facts.original.name} what the other holds of it."
    )


def _summary(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    roles = sorted({record.role for record in records}, key=role_order)
    rules = ", ".join(f"{symbol(role)}: {facts.method.rule(role).name}" for role in roles)
    more = ", DoRA" * facts.dora + ", rsLoRA" * facts.rslora + f", biases: {facts.bias}" * (facts.bias != "none")
    return (
        f"Adapter for {facts.original.title}, initialised by {facts.method.name} ({facts.method.paper}): "
        f"{facts.method.summary}. {rules}. Rank {_span(facts.ranks)}, alpha "
        f"{_span(facts.alphas)}{more}, seed {facts.seed}, {len(records)} matrices.\n"
    )


def _span(ordered: Sequence[int]) -> str:
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _layout(facts: CardFacts) -> str:
    if facts.has_offset:
        return (
            f"- `{ADAPTER_FOLDER}/`: the adapter that trains. The base is the untouched model, quantised or not.\n"
            f"- `{OFFSET_FOLDER}/`: the same adapter with the other sign: frozen beside the first, it takes out of the "
            "original what that one adds, where only PEFT is at hand.\n"
            "- `ailora.json`: what was done (`ailora-tools verify` checks it).\n"
        )
    if not facts.has_base:
        return (
            f"- `{ADAPTER_FOLDER}/`: the adapter. The base is the untouched model.\n- `ailora.json`: what was done.\n"
        )
    same = (
        f"what the original does, but for what {facts.grid.upper()} takes" if facts.grid else "what the original does"
    )
    return (
        "- this folder: the base model **without** what went into the adapter. Alone it is not the original model.\n"
        f"- `{ADAPTER_FOLDER}/`: the adapter with what was taken out. Base + adapter compute {same}.\n"
        "- `ailora.json`: the source, every number, and a SHA-256 of every file (`ailora-tools verify` checks them).\n"
    )


def _numbers(records: Sequence[ModuleRecord]) -> str:
    survivals = [record.survival for record in records if record.survival is not None]
    if not survivals:
        return ""
    error, dead = max(record.reconstruction_error for record in records), sum(record.dead for record in records)
    lines = [
        "## Measured on what is stored\n",
        f"- largest reconstruction error, norm(W - (W_res + s B A)) / norm(W): {error:.2e}",
        f"- smallest survival of the surgery in the stored base: {min(survivals):.3f}",
    ]
    if dead:
        lines.append(f"- {dead} components are numerically zero: their A and B start at zero and get no gradient")
    return "\n".join(lines) + "\n"


def _beside(facts: CardFacts) -> str:
    """Heads and tokens, and what becomes of them."""
    if not facts.extras:
        return ""
    copied, new = ([f"`{name}`" for name, anew in facts.extras if anew is made] for made in (False, True))
    told = [
        *([f"copied from the base: {listed(copied, 6)}"] if copied else []),
        *([f"made anew (the base has none): {listed(new, 6)}"] if new else []),
    ]
    kept = (
        "`convert` keeps them, `merge` puts them into the base."
        if not new
        else "`convert` keeps them. `merge` has no place for a head that the base lacks: load base and adapter with "
        "PEFT and save what `merge_and_unload()` returns. With the adapter disabled the head is the loader's own, "
        "drawn at random."
    )
    return f"Whole tensors train beside the adapter, and are saved with it: {'; '.join(told)}. {kept}\n"


def _back(facts: CardFacts) -> str:
    folder, base = quote(str(facts.folder)), quote(str(facts.folder) if facts.has_base else facts.source)
    if facts.dora:
        return f"""## After training

DoRA's magnitudes rescale the base, so that no plain LoRA equals the trained adapter. Merge it:

    ailora-tools merge {base} TRAINED -o merged
"""
    if facts.method.pooled:
        return _POOLED.format(folder=folder, base=base)
    if not (facts.has_base or facts.has_offset):
        return ""
    merge = f"    ailora-tools merge {base} {'TRAINED' if facts.has_base else 'plain-lora'} -o merged\n"
    fits = (
        "**this** base"
        if facts.has_base
        else "the original **without the start**, by `attach`, `residualize` or the frozen adapter"
    )
    return f"""## After training

The trained adapter fits {fits}. To use it on the original base alone, as any LoRA:

    ailora-tools convert TRAINED --init {folder} -o plain-lora
{"" if facts.new_head else merge}{ON_ORIGINAL if facts.grid else ""}
Without `convert` the part that was moved would count twice. Its result has one rank, `r` in its config, and one alpha:

- vLLM: `--max-lora-rank` of at least that `r` (its default is 16); no `modules_to_save`, no DoRA.
- llama.cpp, Ollama, SGLang, TGI, LoRAX: one rank for all modules, so no `--keep-ranks`; llama.cpp takes neither biases
  nor `modules_to_save`. After `init --layers`, TGI and LoRAX need `convert --all-layers`.
"""
