"""An adapter of which a part was lost when it was saved is refused; what is zero for a reason is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import prepare
from kit.families import build
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools import convert, initialize, merge
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.errors import TargetError

Lose = Callable[[str, Tensor], Tensor]


def rows(side: str, keep: float, *, columns: bool = False, only: str = "") -> Lose:
    """Zeros behind the first rows (or columns) of a factor."""

    def lose(name: str, value: Tensor) -> Tensor:
        if f"lora_{side}." not in name or only not in name:
            return value
        value = (value.T if columns else value).clone()
        value[int(len(value) * keep) :] = 0
        return (value.T if columns else value).contiguous()

    return lose


LOST: dict[str, tuple[Lose, str]] = {
    "rows of B": (rows("B", 0.5), "rows of B"),
    "all of B": (rows("B", 0), "all of B"),
    "B of one module": (rows("B", 0, only="layers.1.self_attn.v_proj"), "v_proj: all of B"),
    "rows of A": (rows("A", 0.5), "rows of A"),
    "columns of A": (rows("A", 0.5, columns=True), "columns of A"),
}


def lossy(folder: Path, lose: Lose) -> None:
    held = load_file(folder / ADAPTER_WEIGHTS)
    save_file({name: lose(name, value) for name, value in held.items()}, folder / ADAPTER_WEIGHTS)


@pytest.mark.parametrize("case", LOST)
def test_what_was_not_zero_at_the_start_is_missed(case: str, tmp_path: Path) -> None:
    trained, _ = prepare("llama", tmp_path)
    lose, told = LOST[case]
    lossy(trained, lose)
    for verb in (convert, merge):
        places = (trained, tmp_path / "init") if verb is convert else (tmp_path / "init", trained)
        with pytest.raises(TargetError, match=rf"is incomplete.*{told}"):
            verb(*places, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gpt2", "falcon, one key", "t5, heads narrower than the model"])
def test_rows_that_were_zero_at_the_start_are_not_missed(name: str, tmp_path: Path) -> None:
    trained, _ = prepare(name, tmp_path)
    convert(trained, tmp_path / "init", tmp_path / "plain")
    merge(tmp_path / "init", trained, tmp_path / "merged")
    merge(tmp_path / "model", tmp_path / "plain", tmp_path / "too")  # rows of W^K are zero in this LoRA without a start


def plain(folder: Path, **config: Any) -> None:
    """A LoRA of PEFT as it is after training, on a Llama."""
    build("llama").save_pretrained(folder / "model")
    base: Any = type(build("llama")).from_pretrained(folder / "model")  # type: ignore[attr-defined]
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **config}
    torch.manual_seed(1)
    get_peft_model(base, LoraConfig(**settings)).save_pretrained(folder / "trained")


@pytest.mark.parametrize("case", ["rows of B", "rows of A", "columns of A"])
def test_without_a_start_one_share_of_all_modules_is_told(case: str, tmp_path: Path) -> None:
    plain(tmp_path)
    lose, told = LOST[case]
    lossy(tmp_path / "trained", lose)
    with pytest.raises(TargetError, match=rf"is incomplete.*{told}"):
        merge(tmp_path / "model", tmp_path / "trained", tmp_path / "out")


def test_without_a_start_a_layer_that_lost_its_b_is_told(tmp_path: Path) -> None:
    plain(tmp_path)
    lossy(tmp_path / "trained", rows("B", 0, only="layers.1.self_attn.v_proj"))
    with pytest.raises(TargetError, match=r"is incomplete.*layers.1.self_attn.v_proj: all of B"):
        merge(tmp_path / "model", tmp_path / "trained", tmp_path / "out")


def test_a_fresh_lora_and_single_zero_rows_are_no_loss(tmp_path: Path) -> None:
    plain(tmp_path, init_lora_weights=True)  # B is zero everywhere
    done = merge(tmp_path / "model", tmp_path / "trained", tmp_path / "fresh")
    assert {module.change for module in done.modules} == {0.0}
    shutil.rmtree(tmp_path / "trained")
    plain(tmp_path)

    def dead(name: str, value: Tensor) -> Tensor:
        return value * (torch.arange(len(value)) % 5 > 0)[:, None] if "lora_B" in name else value

    lossy(tmp_path / "trained", dead)  # neurons without a gradient
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "dead")


def test_an_untrained_start_is_whole(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    for method in ("ailora", "lora"):
        made = initialize(tmp_path / "model", 2, method=method, output=tmp_path / method)
        base = tmp_path / ("model" if method == "lora" else method)
        merge(base, made.adapter, tmp_path / f"{method} merged")
