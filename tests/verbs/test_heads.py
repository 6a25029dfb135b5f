"""Heads and tokens beside the start: written by `init`, trained by the real PEFT, kept by `convert` and `merge`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from kit.adapters import near
from kit.cards import run_card
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ailora_tools import convert, initialize, merge, verify
from ailora_tools.adapters.peft import PREFIX
from ailora_tools.errors import TargetError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
WORDS = torch.arange(2, 14).reshape(2, 6)


def bert(kind: type) -> nn.Module:
    return kind(hf.BertConfig(**SIZES))


def llama(kind: type, **more: object) -> nn.Module:
    return kind(hf.LlamaConfig(**SIZES, pad_token_id=0, **more))


def gpt2(kind: type) -> nn.Module:
    return kind(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, pad_token_id=0))


@dataclass(frozen=True)
class Case:
    """A model that is published; the class that trains and the options; what trains beside the factors, and how much
    of it the base lacks; whether `merge` has a place for all of it."""

    published: Callable[[], nn.Module]
    trains: Any
    options: dict[str, Any]
    beside: tuple[str, ...]
    new: bool = False

    @property
    def labels(self) -> dict[str, int]:
        return {"num_labels": self.options["num_labels"]} if "num_labels" in self.options else {}


def classifier(published: Callable[[], nn.Module], kind: type, modules: str, *beside: str, labels: int = 3) -> Case:
    options = {"modules_to_save": modules.split(), "model_class": kind.__name__, "num_labels": labels}
    return Case(published, kind, options, beside, new=True)


def language(options: dict[str, Any], *beside: str, **config: object) -> Case:
    return Case(lambda: llama(hf.LlamaForCausalLM, **config), hf.LlamaForCausalLM, options, beside)


EMBEDDED, HEAD, SCORE = "model.embed_tokens.weight", "lm_head.weight", "score.weight"
TOKENS = "model.embed_tokens.token_adapter.trainable_tokens_delta"
BOTH = {"modules_to_save": ["lm_head", "embed_tokens"]}
CASES = {
    "a BERT body": classifier(
        lambda: bert(hf.BertModel), hf.BertForSequenceClassification, "classifier",
        "classifier.bias", "classifier.weight",
    ),
    "BERT with another head": classifier(
        lambda: bert(hf.BertForMaskedLM), hf.BertForSequenceClassification, "classifier pooler",
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight", labels=2,
    ),
    "a classifier of two layers": classifier(
        lambda: hf.RobertaModel(hf.RobertaConfig(**SIZES, pad_token_id=1)), hf.RobertaForSequenceClassification,
        "classifier", "classifier.dense.bias", "classifier.dense.weight", "classifier.out_proj.bias",
        "classifier.out_proj.weight",
    ),
    "a Llama": classifier(lambda: llama(hf.LlamaForCausalLM), hf.LlamaForSequenceClassification, "score", SCORE),
    "a Llama body": classifier(lambda: llama(hf.LlamaModel), hf.LlamaForSequenceClassification, "score", SCORE),
    "GPT-2": classifier(lambda: gpt2(hf.GPT2LMHeadModel), hf.GPT2ForSequenceClassification, "score", SCORE),
    "a head that is there": Case(
        lambda: bert(hf.BertForSequenceClassification), hf.BertForSequenceClassification,
        {"modules_to_save": "classifier"}, ("classifier.bias", "classifier.weight"),
    ),
    "lm_head and embed_tokens, tied": language(BOTH, HEAD, EMBEDDED, tie_word_embeddings=True),
    "lm_head and embed_tokens, untied": language(BOTH, HEAD, EMBEDDED),
    "tokens, tied": language({"trainable_tokens": "3,7,10-12"}, TOKENS, tie_word_embeddings=True),
    "tokens, untied": language({"trainable_tokens": "12,3"}, TOKENS),
    "tokens and a head": language({"trainable_tokens": "5", "modules_to_save": ["lm_head"]}, HEAD, TOKENS),
    "no base": language({**BOTH, "no_base": True}, HEAD, EMBEDDED),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write(case: Case, folder: Path) -> Path:
    """The published model, weights large enough that no head hides a fault below it."""
    torch.manual_seed(0)
    model = case.published()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder / "model")
    return folder / "model"


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.eval()(input_ids=WORDS).logits
    return found.double()


def as_published(case: Case, source: Path, adapter: Path) -> nn.Module:
    """The original in the class that trains; a head that it lacks is that of the adapter."""
    model = case.trains.from_pretrained(source, **case.labels)
    if case.new:
        held = load_file(adapter / "adapter_model.safetensors")
        model.load_state_dict({name: held[PREFIX + name] for name in case.beside}, strict=False)
    return model


def train(model: nn.Module) -> None:
    model.train()
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        with torch.enable_grad():
            loss = (model(input_ids=WORDS).logits - 1).square().mean()
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("name", CASES)
def test_it_starts_as_the_original_trains_and_comes_back(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = write(case, tmp_path)
    made = initialize(source, 2, output=tmp_path / "start", **case.options)
    assert verify(made.folder).holds
    model = run_card(made.folder)["model"]
    first = logits(model)
    assert near(first, logits(as_published(case, source, made.adapter)))
    train(model)
    assert not near(logits(model), first, 1e-2)
    options = {"selected_adapters": ["default"]} if made.manifest and made.manifest.offset else {}
    model.save_pretrained(tmp_path / "trained", **options)
    start, now = (load_file(folder / "adapter_model.safetensors") for folder in (made.adapter, tmp_path / "trained"))
    assert sorted(now) == sorted(start), "PEFT saves what init wrote"
    assert not any(torch.equal(start[PREFIX + part], now[PREFIX + part]) for part in case.beside if part != HEAD)
    done = convert(tmp_path / "trained", made.folder, tmp_path / "plain")
    assert done.kept == case.beside
    original = case.trains.from_pretrained(source, **case.labels)
    assert near(logits(PeftModel.from_pretrained(original, done.folder)), logits(model))
    base, adapter = (made.folder, tmp_path / "trained") if not options else (source, done.folder)
    if case.new:
        with pytest.raises(TargetError, match=case.beside[0]):
            merge(base, adapter, tmp_path / "merged")
        return
    merged = merge(base, adapter, tmp_path / "merged").folder
    assert near(logits(case.trains.from_pretrained(merged)), logits(model))
