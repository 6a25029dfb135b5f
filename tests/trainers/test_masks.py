"""`mask_fused_gradients` under FSDP2: it holds or it is refused, never nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.real_models import ROOT
from kit.trainers import HERE, SCRIPTS, answer
from transformers import GPT2Config, GPT2LMHeadModel

from ailora_tools import initialize

pytestmark = pytest.mark.trainers


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_mask_holds_under_fsdp2_or_is_refused(when: str, tmp_path: Path, line: Any) -> None:
    line.about("FSDP2 (fully_shard)", f"`mask_fused_gradients` {when} sharding", HERE, "torch", "peft")
    config = GPT2Config(n_layer=2, n_head=4, n_embd=64, vocab_size=120, n_positions=64, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    start = initialize(tmp_path / "gpt2", 4, output=tmp_path / "start").folder
    launch = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    HERE.run(*launch, SCRIPTS / "masked.py", when, start, here=tmp_path, PYTHONPATH=str(ROOT))
    found = answer(tmp_path)
    if not isinstance(found, str):
        line.numbers["largest entry outside the blocks"] = found
    assert isinstance(found, str) or found == 0
