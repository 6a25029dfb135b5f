"""Which parameters of a model share one tensor: the input embedding, copies of it, and the output layer.

What is tied follows from `_tied_weights_keys` of the classes in transformers; a test holds this table against them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..checkpoint.index import Checkpoint
from .architectures import BY_MODEL_TYPE
from .matching import last_word
from .module_names import is_bare

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tokens_embed", "embed_in", "tok_embeddings", "shared",
               "embeddings")  # fmt: skip
_BERT_HEAD, _ROBERTA_HEAD = "cls.predictions.decoder", "lm_head.decoder"
_BERT_LIKE = (
    "bert", "big_bird", "deberta", "deberta-v2", "ernie", "layoutlm", "megatron-bert", "mobilebert", "mra",
    "nystromformer", "roc_bert", "tapas", "yoso",
)  # fmt: skip
_ROBERTA_LIKE = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "roberta-prelayernorm", "mpnet", "esm",
    "bert-generation", "xmod",
)  # fmt: skip
_HEADS: Mapping[str, str] = {
    **dict.fromkeys(_BERT_LIKE, _BERT_HEAD),
    **dict.fromkeys(_ROBERTA_LIKE, _ROBERTA_HEAD),
    "albert": "predictions.decoder",
    "blip": "text_decoder.cls.predictions.decoder",
    "biogpt": "output_projection",
    "convbert": "generator_lm_head",
    "distilbert": "vocab_projector",
    "electra": "generator_lm_head",
    "gpt_neox": "embed_out",  # so in files; lm_head in memory
    "gpt_neox_japanese": "embed_out",
    "flaubert": "pred_layer.proj",
    "modernbert": "decoder",
    "trocr": "output_projection",
    "whisper": "proj_out",
    "xlm": "pred_layer.proj",
}
_WITH_HEAD = (
    "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "MTModel", "ForPreTraining",
    "GenerationDecoder",
)  # fmt: skip
# Model types that cannot have them apart -> why.
_INSEPARABLE = {
    **dict.fromkeys(
        ["t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop"],
        "its class scales the output by whether they are tied",
    ),
    "luke": "its class ties other tensors with the same setting",
    "splinter": "its head is not known here",
}  # fmt: skip


@dataclass(frozen=True)
class Tied:
    """Parameters with one value: `source`, the tensor of the file that holds it, and the others by the name that the
    class loads them under, in the file or not. inseparable: why they cannot have values of their own, or ""."""

    source: str
    others: tuple[str, ...]
    inseparable: str = ""

    @property
    def embedding(self) -> str:
        """The one that the class takes for its input embedding, "" of biases."""
        return next((name for name in (self.source, *self.others) if last_word(name) in _EMBEDDINGS), "")


def tied_parameters(checkpoint: Checkpoint) -> list[Tied]:
    """The groups of a checkpoint whose class ties them, by config.json and by what the file holds."""
    sources = [name for name in checkpoint.tensors if last_word(name) in _EMBEDDINGS and name.endswith(".weight")]
    shared = [name for name in sources if last_word(name) == "shared"]
    known = len(shared or sources) == 1 and checkpoint.model_type in BY_MODEL_TYPE
    found = [group for source in shared or sources for group in _groups(checkpoint, source, known)]
    head = f"{_head(checkpoint)}.weight"
    if not sources and head in checkpoint.tensors and checkpoint.config.get("tie_word_embeddings") is not False:
        found.append(Tied(head, ("model.embed_tokens.weight",), "the file has no input embedding"))
    return found


def _groups(checkpoint: Checkpoint, source: str, known: bool) -> Iterator[Tied]:
    """The embedding `source` with its copies and the output layer; the two biases that some output layers have."""
    head, kind = _head(checkpoint), checkpoint.model_type or ""
    path = f"language_model.{head}" if source.startswith("language_model.model.") else head
    apart = checkpoint.config.get("tie_word_embeddings") is False and f"{path}.weight" in checkpoint.tensors
    stem = source.removesuffix("shared.weight")
    copies = [f"{stem}{side}.embed_tokens.weight" for side in ("encoder", "decoder")] if stem != source else []
    others = (*copies, *([f"{path}.weight"] if head and not apart else []))
    why = _INSEPARABLE.get(kind, "")
    if not known and not checkpoint.tensors.keys() >= set(others):
        why = f"what it ties is not known for model type {kind!r} here"
    if checkpoint.config.get("tie_word_embeddings") is False and head and not apart:
        why = why or f"tie_word_embeddings is false, but the file has no {path}"
    if others:
        yield Tied(source, others, why)
    bias = f"{path.removesuffix('.decoder')}.bias"
    if head.endswith(".decoder") and not apart and bias in checkpoint.tensors:
        yield Tied(bias, (f"{path}.bias",), why)


def untied(config: Mapping[str, object]) -> dict[str, object]:
    """config.json of the model whose parameters have values of their own: at its root and for its text tower, because
    releases of transformers look at either."""
    inner = {
        name: {**value, "tie_word_embeddings": False}
        for name, value in config.items()
        if name in ("text_config", "llm_config") and isinstance(value, dict)
    }
    return {**config, **inner, "tie_word_embeddings": False}


def _head(checkpoint: Checkpoint) -> str:
    """Path of the output layer, "" where the class has none that is tied."""
    classes = checkpoint.architectures
    if not classes or all(is_bare(name) or not name.endswith(_WITH_HEAD) for name in classes):
        return ""
    return _HEADS.get(checkpoint.model_type or "", "lm_head")
