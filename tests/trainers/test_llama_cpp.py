"""llama.cpp's own converters and engine: a converted adapter as it is served, against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.trainers import SCRIPTS, adapted, answer, environment, load, write_json
from peft import PeftModel
from torch import nn

from ailora_tools import convert, initialize

pytestmark = pytest.mark.trainers
LLAMA_CPP = environment("llama_cpp")
PACKAGES = ("xllamacpp", "gguf")
PROMPTS = [[1, 500, 600, 700, 20, 33], [5, 6, 7, 8, 900, 1234, 4321], [28000, 17, 41000]]


def gguf(script: str, folder: Path, *words: object) -> Path:
    """What a converter makes of `folder`, in float32, so that nothing but arithmetic can differ."""
    out = folder.with_suffix(".gguf")
    path = LLAMA_CPP.folder / "llama.cpp" / script
    given = (folder, "--outfile", out, "--outtype", "f32", *words)
    LLAMA_CPP.run("python", path, *map(str, given), here=folder.parent)
    return out


@pytest.fixture(scope="module")
def served(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original for llama.cpp."""
    link = tmp_path_factory.mktemp("served") / "original"
    link.symlink_to(original)
    return gguf("convert_hf_to_gguf.py", link)


@torch.no_grad()
def worst(model: nn.Module, base: Path, adapter: Path | None, folder: Path) -> float:
    """Largest difference of a logprob among the 20 likeliest tokens after each prompt."""
    prompts = write_json(folder / "prompts.json", PROMPTS)
    LLAMA_CPP.run("python", SCRIPTS / "llama_cpp.py", base, adapter or "-", prompts, here=folder)
    errors = []
    for tokens, likely in zip(PROMPTS, answer(folder), strict=True):
        expected = torch.log_softmax(model.eval()(torch.tensor([tokens])).logits[0, -1].double(), -1)
        errors += [abs(float(expected[int(token)]) - found) for token, found in likely.items()]
    assert len(errors) == 20 * len(PROMPTS)
    return max(errors)


def moved(start: Path, folder: Path) -> PeftModel:
    """The start, every factor moved at random as training might, saved in `folder`."""
    model = adapted(start, start / "ailora_init", trainable=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in (one for one in model.parameters() if one.requires_grad):
        parameter.data += 0.1 * parameter.std().detach() * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


def test_a_converted_adapter_is_served_as_trained(
    start: Path, original: Path, served: Path, tmp_path: Path, line: Any
) -> None:
    line.about("llama.cpp", "convert, convert_lora_to_gguf.py, logprobs against PEFT", LLAMA_CPP, *PACKAGES)
    trained = moved(start, tmp_path / "trained")
    convert(tmp_path / "trained", start, tmp_path / "plain")
    adapter = gguf("convert_lora_to_gguf.py", tmp_path / "plain", "--base", original)
    line.numbers |= {
        "logprob error without adapter": worst(load(original), served, None, tmp_path),
        "logprob error": worst(trained, served, adapter, tmp_path),
        "changed": worst(trained, served, None, tmp_path),
    }
    assert max(line.numbers["logprob error"], line.numbers["logprob error without adapter"]) < 1e-3
    assert line.numbers["changed"] > 0.1


RANKS = {
    "format": "ailora-tools ranks", "version": 1, "rank": 8,
    "rank_pattern": {"model.layers.0.self_attn.q_proj": 16, "model.layers.1.self_attn.v_proj": 4},
    "alpha_pattern": {"model.layers.0.self_attn.q_proj": 16, "model.layers.1.self_attn.v_proj": 4},
}  # fmt: skip


def test_a_start_of_several_ranks_is_served_as_trained(original: Path, served: Path, tmp_path: Path, line: Any) -> None:
    line.about("llama.cpp", "convert of a start with `--ranks`, logprobs against PEFT", LLAMA_CPP, *PACKAGES)
    ranks = write_json(tmp_path / "ranks.json", RANKS)
    start = initialize(original, ranks=str(ranks), output=tmp_path / "start").folder
    trained = moved(start, tmp_path / "trained")
    convert(tmp_path / "trained", start, tmp_path / "plain")
    adapter = gguf("convert_lora_to_gguf.py", tmp_path / "plain", "--base", original)
    line.numbers["logprob error"] = worst(trained, served, adapter, tmp_path)
    assert line.numbers["logprob error"] < 1e-3
