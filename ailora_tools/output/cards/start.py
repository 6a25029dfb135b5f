"""README.md of an output folder: what it is, how to load it, and how to get back to the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from ...errors import listed
from ...methods import RULES, Method, role_order, symbol
from ...metrics.motion import lr_scales, role_motion
from ..about_grid import ON_ORIGINAL, grid_section
from ..loading import Loader, literal, load_lines
from ..manifest import ModuleRecord
from ..names import ADAPTER_FOLDER, LR_GROUPS, OFFSET_FOLDER

_POOLED = """## After training

A reads sums over groups of inputs (QA-LoRA), which PEFT computes on GPTQModel's layers alone and merges nowhere. It is
a plain LoRA of the same rank, for any server that has the quantised base, and merges into the 16-bit model:

    ailora-tools convert TRAINED --init {folder} -o plain-lora
    ailora-tools merge {base} plain-lora -o merged
"""
_HOLDS = """Leave dropout and
weight decay at 0: the adapter holds a part of the original, which they would take away from it."""


@dataclass(frozen=True)
class CardFacts:
    """What the card tells besides the numbers. `base` is what a trainer loads as the model, `source` the original as
    a command takes it; `has_base` whether a base is here, `has_offset` whether a frozen adapter stands for it;
    `quantised` whether the original holds the matrices in few bits, `grid` on which grid of few bits the base lies.
    extras: what trains beside the factors, and whether it was made anew."""

    folder: Path
    method: Method
    ranks: Sequence[int]
    alphas: Sequence[int]
    seed: int
    base: str
    source: str
    has_base: bool
    has_offset: bool
    quantised: bool
    loader: Loader
    dora: bool
    rslora: bool
    bias: str
    grid: str | None = None
    extras: Sequence[tuple[str, bool]] = ()

    @property
    def new_head(self) -> bool:
        """Whether the base lacks a part of the model that trains."""
        return any(anew for _, anew in self.extras)

    @property
    def adapter(self) -> str:
        return str(self.folder / ADAPTER_FOLDER)

    @property
    def offset(self) -> str:
        return str(self.folder / OFFSET_FOLDER)


def model_card(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    """Markdown; states the measured numbers of this very folder."""
    parts = [_summary(facts, records), _layout(facts), _numbers(records), _load(facts)]
    parts += [grid_section(facts.grid, records, facts.loader.call)] if facts.grid else []
    parts += [_beside(facts), _frozen(facts, records)]
    parts += [_training(facts, records), _fused(facts, records), _back(facts)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _summary(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    roles = sorted({record.role for record in records}, key=role_order)
    rules = ", ".join(f"{symbol(role)}: {facts.method.rule(role).name}" for role in roles)
    more = ", DoRA" * facts.dora + ", rsLoRA" * facts.rslora + f", biases: {facts.bias}" * (facts.bias != "none")
    return (
        f"# {facts.folder.name}\n\nAdapter initialised by {facts.method.name} ({facts.method.paper}): "
        f"{facts.method.summary}. {rules}. Rank {_span(facts.ranks)}, alpha "
        f"{_span(facts.alphas)}{more}, seed {facts.seed}, {len(records)} matrices.\n"
    )


def _fused(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    """What training must know where several projections share a module."""
    fused = [record for record in records if record.part is not None]
    if not fused:
        return ""
    return (
        f"\n## Fused projections\n\n`{fused[0].module}` and its like hold several matrices. Their adapter is "
        "built in blocks, and the other rows of the base keep their bytes, but plain training fills the rest of B and "
        "so changes the other rows too. A mask, set once after loading, keeps training inside the blocks:\n\n"
        + _python(
            "from ailora_tools import mask_fused_gradients", "", f"mask_fused_gradients(model, {_adapter(facts)})"
        )
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


def _training(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    """Learning rates by role."""
    motion = role_motion((record.role, record.motion) for record in records)
    told = ", ".join(
        f"{symbol(role)} {motion[role] / min(motion.values()):.3g}" for role in motion if min(motion.values())
    )
    text = (
        f"\n## Learning rates\n\nExpected change of W by A and B at the first step of Adam, relative to the slowest "
        f"role: {told}. "
    )
    if facts.dora:
        text += "DoRA's magnitudes move besides, every row by the learning rate. "
    if len({record.module for record in records}) < len(records):
        return text + "The roles share modules, and so A, B and their learning rate: nothing can equalise that.\n"
    return (
        f"{text}`{LR_GROUPS}` holds factors that equalise it ("
        + ", ".join(f"{symbol(role)} x {scale:.3g}" for role, scale in lr_scales(motion).items())
        + "):\n\n"
        + _python(
            "import torch", "from ailora_tools import lr_groups", "",
            f"optimizer = torch.optim.AdamW(lr_groups(model, {_adapter(facts)}, lr=1e-4))",
        )
        + _decay(facts, records)
    )  # fmt: skip


def _decay(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    if not any(RULES[record.rule].moved for record in records):
        return ""
    call = f"decay_to_start(optimizer, model, {_adapter(facts)}, weight_decay=0.01)"
    return (
        "\nThese groups have no weight decay on what holds a part of the original, which decay would take away. "
        f"`ailora_tools.{call}` decays it towards the start instead.\n"
    )


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


def _frozen(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    """What a loader does not know to keep frozen."""
    return "".join(
        f"\n**{factor} stays frozen**, which the adapter's config cannot say. Do it after loading, and after every "
        f"`set_adapter`. Trainers that load the adapter by themselves train {factor} too.\n\n"
        + _python(f"from ailora_tools import {call}", "", f"{call}(model, {_adapter(facts)})")
        for factor, call in (("A", "freeze_a"), ("B", "freeze_b"))
        if any(RULES[record.rule].frozen == factor for record in records)
    )


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```\n"])


def _adapter(facts: CardFacts) -> str:
    return literal(facts.adapter)


def _load_block(facts: CardFacts, call: str = "", *, before_peft: bool = False) -> str:
    """The code that loads; `call`, a function of this package, changes `base` before PEFT wraps it or `model` after."""
    *lines, model, check = load_lines(facts.loader, facts.adapter)
    start = next((at for at, line in enumerate(lines) if not line.startswith(("from ", "import "))), len(lines))
    names = ", ".join(sorted(filter(None, (call, "check_start"))))
    imports = [line.replace("import check_start", f"import {names}") for line in lines]
    changed = [f"{call}({'base' if before_peft else 'model'}, {_adapter(facts)})"] if call else []
    last = [*changed, model, check] if before_peft else [model, *changed, check]
    return _python(*imports[:start], "", *lines[start:], *last)


def _remark(facts: CardFacts) -> str:
    """What the reader must know before the code, if anything."""
    return f"{facts.loader.remark}\n\n" if facts.loader.remark else ""


def _load_offset(facts: CardFacts) -> str:
    """The ways to take out of the original what the adapter holds of it."""
    attach = f"""the original stays as it is, and the start is attached to its adapter. That computes its change alone,
s (B A - B0 A0) x, which is zero to the bit at the start: in any dtype, under autocast, and on a quantised base.
`disable_adapter()` is the original, and a copy of the adapter that a trainer makes for reference starts as it:

{_load_block(facts, "attach")}"""
    residualize = f"""Take the start out of the loaded model. From then on only PEFT is needed. In 16 bits the residual
is rounded once, and without the adapter the model is not the original:

{_load_block(facts, "residualize", before_peft=True)}
Or {attach}"""
    return f"""## Load it and train

{_remark(facts)}{attach[0].upper() + attach[1:] if facts.quantised else residualize}
`check_start` raises if anything of the start did not arrive, of which PEFT only warns. To go on with a trained adapter,
load its folder in place of `{ADAPTER_FOLDER}`, and give `trained=True` to `check_start`.

By files alone, with less exact arithmetic: `model.load_adapter({literal(facts.offset)}, adapter_name="offset")`, then
`model.base_model.set_adapter(["default", "offset"])` with "offset" frozen, saved by `selected_adapters=["default"]`.
Trainers that resume or make a reference switch it off without a word: ask `check_start` after each of these.

{_HOLDS}
"""


def _load(facts: CardFacts) -> str:
    if facts.has_offset:
        return _load_offset(facts)
    holds = f" {_HOLDS}" if facts.has_base else ""
    trainers = _trainers(facts) if facts.loader.call and "from_pretrained(" in facts.loader.call else ""
    return f"""## Load it and train

{_remark(facts)}{_load_block(facts)}
`check_start` raises if anything of the start did not arrive, of which PEFT only warns.
{trainers}
Save the trained adapter elsewhere and keep `{ADAPTER_FOLDER}/` as it is. Do not change `init_lora_weights: true` in its
config: any other tag makes loaders repeat the surgery on the base.{holds}
"""


def _trainers(facts: CardFacts) -> str:
    if facts.new_head:
        return "\n- transformers' `Trainer` and TRL: pass that `model` and no `peft_config`.\n"
    base, adapter = facts.base, facts.adapter
    return f"""
- TRL: pass that `model` to `SFTTrainer` and no `peft_config`.
- LLaMA-Factory: `model_name_or_path: {base}`, `adapter_name_or_path: {adapter}`, `finetuning_type: lora`; no
  `pissa_init`.
- Axolotl: `base_model: {base}`, `adapter: lora`, `lora_model_dir: {adapter}`.
- Unsloth: `FastLanguageModel.from_pretrained({_adapter(facts)}, use_exact_model_name=True)`.
- ms-swift: `--model {quote(base)} --adapters {quote(adapter)}`.
{_reference(facts)}"""


def _reference(facts: CardFacts) -> str:
    """What preference training and distillation compare with, where the adapter alone is not the difference."""
    if not facts.has_base:
        return ""
    return f"""
Preference training compares with the model whose adapter is disabled: here the residual base. Name the reference:

- LLaMA-Factory: `ref_model: {facts.source}`. ms-swift: `--ref_adapters {quote(facts.adapter)}`. TRL copies the adapter.
- Not with Axolotl's `rl: dpo`, `ipo` or `kto`: it trains a new adapter on this base.
"""


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
