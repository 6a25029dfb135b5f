"""What the guide warns of, and the methods that it names instead, are what the code has."""

from __future__ import annotations

import re

from kit.real_models import ROOT

from ailora_tools import lr_groups
from ailora_tools.analysis.allocation import UNPROVEN
from ailora_tools.methods import METHODS, RULES, Method

GUIDE = ROOT / "examples" / "guide"
TRAINING = " ".join((GUIDE / "training.md").read_text(encoding="utf-8").split())


def section(title: str) -> str:
    return TRAINING.partition(f"## {title} ")[2].partition(" ## ")[0]


def named(text: str) -> list[Method]:
    return [METHODS[name] for name in re.findall(r"`([a-z-]+)`", text) if name in METHODS]


def rules(row: Method) -> set[str]:
    return {*row.rules.values(), *filter(None, [row.every])}


def test_the_starts_that_collapse_in_rl_hold_roots_of_singular_values_and_those_to_take_none() -> None:
    warned, _, rest = section("Reinforcement learning").partition("For that take")
    told, taken = named(warned), named(rest.partition(". A step of Adam")[0])
    assert {row.name for row in told} == {"pissa", "milora", "ailora"} and len(taken) == 4
    assert all(rules(row) <= {"principal", "minor"} for row in told)
    assert not any(RULES[rule].moved or RULES[rule].frozen for row in taken for rule in rules(row))
    assert "must hold the residual base" in rest


def test_learning_rates_are_the_same_in_the_guide_and_beside_the_function() -> None:
    factors = r"by about (\d+) times for principal components, ([\d.]+) for minor ones, (\d+) for OLoRA"
    beside = " ".join((lr_groups.__doc__ or "").split())
    found = [re.search(factors, text) for text in (section("Learning rates"), beside)]
    assert [hit and hit.groups() for hit in found] == [("10", "3.2", "18")] * 2


def test_the_guide_says_of_suggested_ranks_what_the_command_says() -> None:
    shown = re.findall(r"^note: ranks\.json: (.*) \.\.\.$", (GUIDE / "methods.md").read_text("utf-8"), re.MULTILINE)
    assert len(shown) == 1 and UNPROVEN.startswith(shown[0])


def test_what_stays_frozen_is_named_with_its_call() -> None:
    text = section("MiCA and PiCa: one factor stays frozen")
    for row in METHODS.values():
        for frozen in {RULES[rule].frozen for rule in rules(row)} - {""}:
            assert f"`{row.name}`" in text and f"freeze_{frozen.lower()}" in text
