"""Plain sentences of what the study shows and what it does not, with no claim beyond its lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from outcome import Line, Outcome, at_one_rate, contest

ASKED = (
    ("ailora", "lora"), ("ailora", "ailora-reversed"), ("ailora", "pissa"), ("ailora", "milora"),
    ("ailora-balanced", "ailora"), ("ailora-balanced", "lora"), ("ailora-orthonormal", "ailora"),
    ("ailora-orthonormal", "lora"), ("ailora-orthonormal", "rlmo"),
)  # fmt: skip
CONTROLS = ("ailora-reversed",)
_ELSEWHERE = ("lora", "ailora", "ailora-orthonormal", "pissa")  # of which the change of other text is told


@dataclass(frozen=True)
class Titles:
    """How a task is called. `other`: what is measured on text of another kind."""

    name: str
    task: str
    question: str
    score: str
    other: str


_QUESTION = "Does an adapter train better if it starts from the weights, and from other parts for W^Q than for W^V?"
TITLES: Mapping[str, Titles] = {
    "minilm": Titles("MiniLM", "film reviews, positive or negative", _QUESTION, "accuracy",
                     "1 - cosine of the embeddings of editorials before and after"),
    "smollm2": Titles("SmolLM2-135M", "answers to maths word problems", _QUESTION, "minus the loss",
                      "rise of the loss on editorials"),
}  # fmt: skip


def titles(lines: Sequence[Line]) -> Titles:
    """Of the task of these lines."""
    return TITLES[lines[0]["task"]]


def spread(values: Iterable[float]) -> str:
    """Median (least to greatest), three decimals; small values with three digits."""
    known = sorted(values)
    if len(known) == 1:
        return _number(known[0])
    return f"{_number(median(known))} ({_number(known[0])} to {_number(known[-1])})"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def conclusion(found: Sequence[Outcome], lines: Sequence[Line]) -> list[str]:
    """What holds and what does not. Arms whose ranges over the seeds overlap are called the same."""
    by = {one.arm: one for one in found}
    said = [_setting(found, lines), *_scores(found, lines), *_caution(found), *_against_lora(by)]
    said += [_compared(by[first], by[second]) for first, second in ASKED if first in by and second in by]
    return [*said, *_rates(found), *_steps(by, lines), *_elsewhere(by, lines), *_premise(by)]


def _setting(found: Sequence[Outcome], lines: Sequence[Line]) -> str:
    form, best, last = lines[0]["form"], found[0], found[-1]
    return (
        f"{len(lines)} runs of {form['steps']} steps with {form['batch']} texts each, {len(found)} methods, every one "
        f"at the best of its own learning rates (chosen on {form['dev']:,} texts, judged on {form['test']:,} others). "
        f"Lowest test loss: {best.arm}, {spread(best.loss.values())}; highest: {last.arm}, "
        f"{spread(last.loss.values())}."
    )


def _scores(found: Sequence[Outcome], lines: Sequence[Line]) -> Iterator[str]:
    """Who is best by the score, where that is not the loss again."""
    best = max(found, key=lambda one: median(one.score.values()))
    if median(best.score.values()) > 0:
        lora = next((f"; lora {spread(one.score.values())}" for one in found if one.arm == "lora"), "")
        yield f"Highest {titles(lines).score}: {best.arm}, {spread(best.score.values())}{lora}."


def _caution(found: Sequence[Outcome]) -> Iterator[str]:
    single = [one.arm for one in found if len(one.loss) == 1]
    if single:
        yield (
            f"One seed only for {', '.join(single)}: how far such runs lie apart is not known, and their order is an "
            "observation, not a finding."
        )


def _compared(first: Outcome, second: Outcome) -> str:
    told = f"{first.arm} against {second.arm}: test loss {spread(first.loss.values())} against "
    told += f"{spread(second.loss.values())}"
    result = contest(first, second)
    lower = "lower" if first.middle < second.middle else "higher"
    if min(len(first.loss), len(second.loss)) == 1:
        return f"{told}, {lower} by {abs(first.middle - second.middle):.3f} in one seed."
    paired = f"with the same texts in the same order lower in {result.lower} of {result.pairs} seeds"
    if result.apart:
        return f"{told}: {lower} throughout, which chance does in 1 of {1 / result.chance:.0f} such pairs; {paired}."
    return f"{told}: the ranges overlap, no difference shown; {paired}."


def _against_lora(by: Mapping[str, Outcome]) -> Iterator[str]:
    """Every method beside plain LoRA, in one sentence."""
    others = [one for arm, one in by.items() if arm not in ("lora", *CONTROLS) and len(one.loss) > 1]
    if "lora" not in by or len(by["lora"].loss) < 2 or not others:
        return
    results = [contest(one, by["lora"]) for one in others]
    better = [one.first.arm for one in results if one.apart and one.difference < 0]
    worse = [one.first.arm for one in results if one.apart and one.difference > 0]
    same = [one.first.arm for one in results if not one.apart]
    parts = [("lower throughout", better), ("higher throughout", worse), ("not to be told from it", same)]
    told = "; ".join(f"{what}: {', '.join(arms) if arms else 'none'}" for what, arms in parts)
    yield (
        f"Beside LoRA, {spread(by['lora'].loss.values())}, each at its own learning rate: {told}. Chance alone would "
        f"put about {sum(one.chance for one in results):.1f} of these {len(results)} apart."
    )


def _rates(found: Sequence[Outcome]) -> Iterator[str]:
    """What one learning rate for all would have shown."""
    adapters = [one for one in found if one.arm not in ("full", "bitfit")]
    lora = next((one for one in found if one.arm == "lora"), None)
    if lora is None or len({one.lr for one in adapters}) == 1:
        return
    fixed = at_one_rate(adapters, lora.lr)
    own = {one.arm: median(one.by_rate[one.lr]) for one in adapters if one.arm in fixed}
    ends = [sorted(values.values()) for values in (fixed, own)]
    yield (
        f"Had all {len(fixed)} starts been given LoRA's learning rate, {lora.lr:g}, their dev losses would lie between "
        f"{ends[0][0]:.3f} and {ends[0][-1]:.3f}; with their own, from {min(one.lr for one in adapters):g} to "
        f"{max(one.lr for one in adapters):g}, they lie between {ends[1][0]:.3f} and {ends[1][-1]:.3f}."
    )


def _steps(by: Mapping[str, Outcome], lines: Sequence[Line]) -> Iterator[str]:
    told = [
        f"{arm} {', '.join('never' if step is None else str(step) for step in by[arm].reached)}"
        for arm in ("lora", "ailora", "ailora-balanced", "ailora-orthonormal", "pissa")
        if arm in by
    ]
    if "lora" in by and len(told) > 1:
        looks = [look["step"] for look in lines[0]["looks"]]
        yield (
            f"Steps until LoRA's final dev loss (median over its seeds) was reached, of {looks[-1]}, by seed: "
            f"{'; '.join(told)}. Looks were taken every {looks[1] - looks[0]} steps."
        )


def _elsewhere(by: Mapping[str, Outcome], lines: Sequence[Line]) -> Iterator[str]:
    """What training did to other text."""
    if not {"lora", "ailora"} <= by.keys():
        return
    ordered = sorted(by.values(), key=lambda one: median(one.other.values()))
    told = ", ".join(f"{arm} {spread(by[arm].other.values())}" for arm in _ELSEWHERE if arm in by)
    least, most = ordered[0], ordered[-1]
    yield (
        f"Other text, {titles(lines).other}: least under {least.arm}, {spread(least.other.values())}, most under "
        f"{most.arm}, {spread(most.other.values())}; {told}. The best learning rates differ, and with them this."
    )


def _premise(by: Mapping[str, Outcome]) -> Iterator[str]:
    """AILoRA's premise, on the model that was fine-tuned whole."""
    if "full" in by and by["full"].drift:
        drift = by["full"].drift
        holds = "holds" if drift["q"] > drift["v"] else "does not hold"
        yield (
            f"Full fine-tuning changed W^Q by {drift['q']:.3g} and W^V by {drift['v']:.3g} of their norms (seed 0): "
            f"that W^Q changes more, as AILoRA assumes, {holds} here."
        )
