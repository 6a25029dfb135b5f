"""Heads and tokens beside the start: written by `init`, trained by the real PEFT, kept by `convert` and `merge`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from kit.adapters import near
from kit.cards import run_card
from kit.checkpoints import tree
from kit.interruption import Interrupting, join_workers
from kit.tampering import WEIGHTS, Tampered
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ailora_tools import check_start, convert, initialize, merge, verify
from ailora_tools.adapters.peft import PREFIX
from ailora_tools.checkpoint.stream import matrix_bytes
from ailora_tools.errors import AiloraError, TargetError
from ailora_tools.output.spans import sha256

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and transformers warn of, the checks find
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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings, and BERT with a head for words; a classifier's start of the first in `start`."""
    root = tmp_path_factory.mktemp("published")
    llama(hf.LlamaForCausalLM, tie_word_embeddings=True).save_pretrained(root / "llama")
    bert(hf.BertForMaskedLM).save_pretrained(root / "bert")
    initialize(root / "llama", 2, output=root / "start", **CASES["a Llama"].options, trainable_tokens="3,5")
    return root


REFUSED = {
    "a head without its class": ("llama", {"modules_to_save": ["score"]}, "no module 'score'"),
    "a class that is not there": ("llama", {"model_class": "LlamaForPoetry"}, "no model class of that name"),
    "labels without a class": ("llama", {"num_labels": 2}, "Name the class"),
    "what no file would keep": (
        "bert", {"model_class": "BertForSequenceClassification", "modules_to_save": ["classifier"]},
        "--modules-to-save bert.pooler.dense",
    ),
    "a class of another model": ("bert", {"model_class": "LlamaForSequenceClassification"}, "Llama"),
    "an adapted module": ("llama", {"modules_to_save": ["q_proj"]}, "q_proj has an adapter"),
    "a module around adapted ones": ("llama", {"modules_to_save": ["layers.0"]}, "train by themselves"),
    "an expression": ("llama", {"modules_to_save": [".*head"]}, "no name of a module"),
    "a token that is not there": ("llama", {"trainable_tokens": "60"}, "no token 60"),
    "tokens that are no numbers": ("llama", {"trainable_tokens": "<s>"}, "--trainable-tokens"),
    "tokens of an embedding that trains": (
        "llama", {"trainable_tokens": "3", "modules_to_save": ["embed_tokens"]}, "trains whole already",
    ),
    "tokens beside an offset": ("llama", {"trainable_tokens": "3", "no_base": True}, "no --trainable-tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(name: str, published: Path, tmp_path: Path) -> None:
    model, options, words = REFUSED[name]
    with pytest.raises(AiloraError) as told:
        initialize(published / model, 2, output=tmp_path / "start", **options)
    assert words in f"{told.value.problem} {told.value.hint}"
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_makes_the_same_head(published: Path, tmp_path: Path) -> None:
    options = {**CASES["a Llama"].options, "trainable_tokens": "3,5"}
    again = initialize(published / "llama", 2, output=tmp_path / "again", **options)
    other = initialize(published / "llama", 2, output=tmp_path / "other", seed=1, **options)
    first, same, differs = (
        load_file(folder / "ailora_init/adapter_model.safetensors")[PREFIX + SCORE]
        for folder in (published / "start", again.folder, other.folder)
    )
    assert torch.equal(first, same) and not torch.equal(first, differs)
    assert 0.01 < first.std() < 0.03, "initializer_range is 0.02"


def test_a_resumed_run_gives_the_same_bytes(published: Path, tmp_path: Path) -> None:
    whole = tree(initialize(published / "llama", 2, output=tmp_path / "start", **BOTH).folder)
    with pytest.raises(KeyboardInterrupt):
        initialize(
            published / "llama", 2, output=tmp_path / "start", overwrite=True, progress=Interrupting(after=2), **BOTH
        )
    join_workers()
    again = initialize(published / "llama", 2, output=tmp_path / "start", overwrite=True, resume=True, **BOTH)
    assert tree(again.folder) == whole


@pytest.mark.parametrize("part", [SCORE, TOKENS])
def test_another_head_is_found(part: str, published: Path, tmp_path: Path) -> None:
    """By check_start in the model; by `verify` in the file, also where the manifest was sealed again."""
    copied = Path(shutil.copytree(published / "start", tmp_path / "start"))
    model = run_card(published / "start")["model"]
    short = part.removesuffix(".weight")
    with torch.no_grad():
        next(value for path, value in model.named_parameters() if short in path and value.requires_grad).mul_(2)
    with pytest.raises(TargetError, match=short):
        check_start(model, published / "start" / "ailora_init")
    folder = Tampered(copied, published / "llama")
    folder.tensors(WEIGHTS, lambda held: held[PREFIX + part].mul_(2))
    changed = sha256(matrix_bytes(load_file(folder / WEIGHTS)[PREFIX + part]))
    folder.seal(lambda body: [one.update(sha256=changed) for one in body["extras"] if one["name"] == part])
    wrong = [check.detail for check in verify(copied).checks if not check.holds]
    assert any(part in detail for detail in wrong), wrong


def test_a_dry_run_tells_what_would_train_beside(published: Path, tmp_path: Path) -> None:
    planned = initialize(published / "llama", 2, output=tmp_path / "start", dry_run=True, **BOTH).to_json()
    assert planned["extras"] == [HEAD, EMBEDDED] and planned["bytes_to_write"] > 0
