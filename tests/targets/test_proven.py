"""What is stated of versions of transformers fits the table of types and the version that the tests run with."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.every_type import PROVEN, config_of
from versions.table import ranges

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.targets import module_tree
from ailora_tools.targets.architectures import BY_MODEL_TYPE
from ailora_tools.targets.module_tree import check_modules
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.proven import PROVEN as STATED
from ailora_tools.targets.proven import VERSIONS, proven_versions, proven_with
from ailora_tools.targets.selection import Selection

OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]
LATER = "exaone_moe"  # not there before 5.1


def parts_of(model_type: str) -> set[str]:
    """Types inside a type, by whose config some of its layers are built."""
    found, row = set(), BY_MODEL_TYPE[model_type]
    for slot in row.slots if model_type in PROVEN else ():
        if slot.count and slot.count.within:
            part = config_of(model_type)
            for name in slot.count.within.split("."):
                part = getattr(part, name)
            found.add(part.model_type)
    return found


def test_the_newest_version_is_the_one_that_the_tests_run_with() -> None:
    """The rows are held against the installed classes in the other files here."""
    assert transformers.__version__.startswith(f"{NEWEST}.")


def test_every_proven_type_and_every_part_of_one_is_stated_once() -> None:
    """A type that is new in the table goes under the newest version, and where `make versions` says."""
    parts = {part for kind in PROVEN for part in parts_of(kind)}
    stated = [kind for kinds in STATED.values() for kind in kinds.split()]
    assert sorted(stated) == sorted({*PROVEN, "timm", *parts})
    assert all(proven_versions([kind])[-1] == NEWEST for kind in stated), "or else no test here has seen it"


@pytest.mark.parametrize(
    ("release", "holds"),
    [
        *((release, True) for release in (f"{NEWEST}.0", f"{OLDEST}.4", "5.17.0", "5.17.12", "5.17", "5.1.0")),
        *((release, False) for release in ("4.20.1", "5.999.0", "6.0.0", "", "main", "15.17.0", "5.171.0")),
        *((release, False) for release in ("5.17.0.dev0", "5.17.0rc1", "5.17.0+local")),
    ],
)  # fmt: skip
def test_a_release_holds_if_its_minor_version_was_asked(release: str, holds: bool) -> None:
    assert proven_with(release, {"llama"}) is holds


def test_a_type_holds_in_the_versions_that_are_stated_for_it() -> None:
    assert proven_with("5.17.0", {LATER}) and proven_with("5.17.0", {LATER, "llama"})
    assert not proven_with("5.0.0", {LATER}) and not proven_with("5.0.0", {"llama", LATER})
    assert not proven_with("5.17.0", {"brand_new"}) and not proven_with("5.17.0", {"llama", "brand_new"})
    assert not proven_with("5.17.0", ())
    held = [proven_with(release, {"vit"}) for release in ("4.57.6", "5.0.0", "5.8.1", "5.9.0", "5.24.0")]
    assert held == [True, False, False, True, True], "its modules were renamed in 5.9"


def test_answers_make_ranges_with_gaps() -> None:
    found = {"1": {"a", "b"}, "2": {"a"}, "3": {"a", "b", "c"}, "4": {"a", "b", "d"}}
    assert ranges(found) == {"1-1 3-4": ["b"], "1-4": ["a"], "3-3": ["c"], "4-4": ["d"]}


@pytest.mark.parametrize(
    ("release", "text", "asked"),
    [("5.17.0", "llama", False), ("5.0.0", LATER, True), ("5.17.0", "brand_new", True), ("5.999.0", "llama", True)],
)
def test_the_text_model_inside_has_to_hold_as_well(
    release: str, text: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name.replace("model.", "model.language_model.", 1): value for name, value in llama_tensors().items()}
    config = {"model_type": "llava", "text_config": {"model_type": text, "num_hidden_layers": 2}}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, **config))
    plan = make_plan(checkpoint)
    assert plan.counted and plan.types == {"llava", text}
    monkeypatch.setattr(module_tree, "installed_transformers", lambda: release)
    check = check_modules(checkpoint, plan, Selection())
    check.cancel()
    assert (check._process is not None) is asked
