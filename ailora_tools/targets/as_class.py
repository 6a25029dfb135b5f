"""A checkpoint seen as that of another class: the one that will train, which may have a head that the file lacks."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint.header import quoted
from ..checkpoint.index import Checkpoint
from ..errors import OptionError
from .known_classes import is_name, transformers_has

_LABELS = ("num_labels", "id2label", "label2id")


def as_class(checkpoint: Checkpoint, model_class: str | None, labels: int | None) -> Checkpoint:
    """The same files under a config that names `model_class`, with `labels` for its head (None: those config.json
    states). OptionError for a class that the installed transformers lacks, or labels without a class."""
    if model_class is None:
        if labels is not None:
            raise OptionError("--num-labels is for the head of --model-class.", "Name the class, too.")
        return checkpoint
    if not is_name(model_class) or not transformers_has(model_class):
        raise OptionError(
            f"--model-class {quoted(model_class)}: the transformers here has no model class of that name.",
            "Such as BertForSequenceClassification: the class itself, no Auto class.",
        )
    if labels is not None and labels < 1:
        raise OptionError(f"--num-labels is {quoted(labels)}; a head has at least one.", "Such as 2.")
    config = {**checkpoint.config, "architectures": [model_class]}
    if labels is not None:
        config = {key: value for key, value in config.items() if key not in _LABELS} | {"num_labels": labels}
    return replace(checkpoint, config=config)
