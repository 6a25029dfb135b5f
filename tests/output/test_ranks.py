"""`init --ranks`: a rank and an alpha per module, from `analyze --suggest-ranks` to a model that PEFT loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.interruption import Interrupting, join_workers
from kit.real_models import minilm
from peft import PeftModel
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from ailora_tools import AiloraError, analyze, initialize, verify
from ailora_tools.cli.group import main

Q0, V1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def ranks_file(path: Path, **body: Any) -> Path:
    path.write_text(json.dumps({"format": "ailora-tools ranks", "version": 1, **body}))
    return path


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=40,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_mixed_ranks_and_alphas(llama: Path, tmp_path: Path, rslora: bool) -> None:
    file = ranks_file(tmp_path / "ranks.json", rank=4, rank_pattern={Q0: 7, V1: 2}, alpha_pattern={Q0: 21})
    result = initialize(llama, ranks=file, output=tmp_path / "out", rslora=rslora)
    assert result.manifest is not None
    sizes = {module.module: (module.rank, module.alpha) for module in result.manifest.modules}
    assert sizes[Q0] == (7, 21) and sizes[V1] == (2, 2) and sorted(sizes.values())[1:3] == [(4, 4), (4, 4)]
    config = json.loads((tmp_path / "out" / "ailora_init" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["rank_pattern"] == {Q0: 7, V1: 2} and config["alpha_pattern"] == {Q0: 21, V1: 2}
    assert verify(tmp_path / "out").holds
    tokens = torch.arange(12).view(1, -1)
    with torch.no_grad():
        before = LlamaForCausalLM.from_pretrained(llama)(tokens).logits
        base = LlamaForCausalLM.from_pretrained(tmp_path / "out")
        after = PeftModel.from_pretrained(base, tmp_path / "out" / "ailora_init")(tokens).logits
    assert float((after - before).norm() / before.norm()) < 1e-5


def test_from_analysis_to_adapter_on_real_weights(tmp_path: Path) -> None:
    model = minilm(tmp_path / "minilm")
    analyze(model, output=tmp_path / "report", suggest_ranks=6)
    done = subprocess.run(
        [sys.executable, "-m", "ailora_tools", "init", model, "--ranks", tmp_path / "report" / "ranks.json"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "minilm-ailora-ranks").holds
    wanted = json.loads((tmp_path / "report" / "ranks.json").read_text())["rank_pattern"]
    base = AutoModel.from_pretrained(tmp_path / "minilm-ailora-ranks")
    adapted = PeftModel.from_pretrained(base, tmp_path / "minilm-ailora-ranks" / "ailora_init")
    found = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default"): module.weight.shape[0]
        for name, module in adapted.named_modules()
        if name.endswith(".lora_A.default")
    }
    assert found == wanted and len(set(wanted.values())) > 1


@pytest.mark.parametrize(
    "body,words",
    [
        ({"rank_pattern": {Q0: 0}}, f"rank_pattern of {Q0} is 0"),
        ({"rank_pattern": {Q0: 2.5}}, "is 2.5"),
        ({"rank_pattern": {Q0: True}}, "is True"),
        ({"rank_pattern": []}, "rank_pattern is no object"),
        ({"rank": -1}, "rank is -1"),
        ({"rank_pattern": {Q0: 4}, "alpha_pattern": {V1: 4}}, f"alpha_pattern names {V1}, rank_pattern does not"),
        ({"rank_pattern": {"model.layers.9.q": 4}}, "the ranks file names model.layers.9.q, which this run does not"),
        ({"rank_pattern": {V1: 99}}, "rank 99 is above 24, the smaller side of"),
        ({"version": 2}, "format and version are"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, body: dict[str, Any], words: str) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors())
    with pytest.raises(AiloraError) as caught:
        initialize(model, ranks=ranks_file(tmp_path / "ranks.json", **body), output=tmp_path / "out")
    assert words in str(caught.value) and not list(tmp_path.glob("out*"))


def test_no_file_and_no_json(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors())
    for name, text, words in (("none.json", None, "No such file"), ("bad.json", "{", "not valid JSON")):
        if text:
            (tmp_path / name).write_text(text)
        with pytest.raises(AiloraError, match=words):
            initialize(model, ranks=tmp_path / name, output=tmp_path / "out")


def test_without_a_rank_and_a_file_the_command_line_takes_8(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors())
    done = CliRunner().invoke(main, ["init", str(model), "-o", str(tmp_path / "out"), "--dry-run", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["settings"]["rank"] == 8


def test_another_file_does_not_resume(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors())
    one, two = (ranks_file(tmp_path / f"{r}.json", rank=4, rank_pattern={Q0: r}) for r in (5, 6))
    with pytest.raises(KeyboardInterrupt):
        initialize(model, ranks=one, output=tmp_path / "out", progress=Interrupting(5))
    join_workers()
    with pytest.raises(AiloraError, match="differs in rank_pattern"):
        initialize(model, ranks=two, output=tmp_path / "out", resume=True)
    initialize(model, ranks=one, output=tmp_path / "out", resume=True)
    assert verify(tmp_path / "out").holds
