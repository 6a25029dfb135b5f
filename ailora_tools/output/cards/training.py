"""How a start is loaded and trained: the code and the options of trainers, as they stand in its card."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from ...methods import RULES, symbol
from ...metrics.motion import lr_scales, role_motion
from ..loading import literal, load_lines
from ..manifest import ModuleRecord
from ..names import ADAPTER_FOLDER, LR_GROUPS
from .facts import CardFacts

_HOLDS = """Leave dropout and
weight decay at 0: the adapter holds a part of the original, which they would take away from it."""


def fused(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
    """What training must know where several projections share a module."""
    shared = [record for record in records if record.part is not None]
    if not shared:
        return ""
    return (
        f"\n## Fused projections\n\n`{shared[0].module}` and its like hold several matrices. Their adapter is "
        "built in blocks, and the other rows of the base keep their bytes, but plain training fills the rest of B and "
        "so changes the other rows too. A mask, set once after loading, keeps training inside the blocks:\n\n"
        + _python(
            "from ailora_tools import mask_fused_gradients", "", f"mask_fused_gradients(model, {_adapter(facts)})"
        )
    )


def learning_rates(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
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


def frozen(facts: CardFacts, records: Sequence[ModuleRecord]) -> str:
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


def load_and_train(facts: CardFacts) -> str:
    """The code that loads base and adapter, and what each trainer is told."""
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
