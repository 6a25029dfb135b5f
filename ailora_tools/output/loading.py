"""Python that loads a base and its adapter, as it stands: for transformers, diffusers and timm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.files import Origin
from ..targets.known_classes import is_name, transformers_has

# How torch calls what safetensors calls so, from narrow to wide.
_TORCH = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_AUTO = 'dtype="auto"'
_VARIANT = re.compile(r"(?:model|diffusion_pytorch_model)\.([A-Za-z0-9_]+)(?:-\d+-of-\d+)?\.safetensors")
_NO_CLASS = "The config.json names no class"
_OWN_CODE = "The code that comes with the model runs when it is loaded: look at it first, or trust who made it."


@dataclass(frozen=True)
class Loader:
    """imports: lines. call: of the base, None where nothing says what builds it. remark: what the reader must know."""

    imports: tuple[str, ...]
    call: str | None
    remark: str = ""


def find_loader(
    config: Mapping[str, Any], place: Origin, shards: Iterable[str], dtypes: Mapping[str, str], residual: bool,
    labels: int | None = None,
) -> Loader:  # fmt: skip
    """What builds the model that `config` (config.json) describes from the files `shards` in `place`.

    dtypes: of the matrices that `init` worked on, dtype in the base it wrote -> dtype in the source, as safetensors
    spells them. residual: whether `place` holds that base. labels: of the head, where config.json does not say it.
    """
    if "pretrained_cfg" in config and "architecture" in config:
        return Loader(("import timm",), f"timm.create_model({literal(_timm_name(place))}, pretrained=True)")
    files = [*_arguments(place), *_variant(shards)]
    if "_class_name" in config:
        return _diffusers(config["_class_name"], files, _widest(dtypes))
    if not config:
        remark = "No config.json says what builds this model: `base` is the model of your own code, with the weights of"
        return Loader((), None, f"{remark} {_where(place)}.")
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    files.append(_dtype(config, dtypes) if residual else _AUTO)
    files += [f"num_labels={labels}"] * (labels is not None)
    if is_name(name) and transformers_has(name):
        return _transformers(name, files)
    if auto := _auto_class(config, name):
        return _transformers(auto, [*files, "trust_remote_code=True"], _OWN_CODE)
    what = f"The transformers here has no {name}, which config.json names" if is_name(name) else _NO_CLASS
    return _transformers(
        "AutoModel", files, f"{what}: put the class that the checkpoint was saved from for `AutoModel`."
    )


def load_lines(loader: Loader, adapter: str) -> list[str]:
    """Statements that leave `base` and `model`, or raise."""
    return [
        "from peft import PeftModel",
        *loader.imports,
        "from ailora_tools import check_start",
        *([f"base = {loader.call}"] if loader.call else []),
        f"model = PeftModel.from_pretrained(base, {literal(adapter)}, is_trainable=True)",
        f"check_start(model, {literal(adapter)})",
    ]


def absolute(origin: Origin) -> Origin:
    """The same, as a loader finds it from anywhere: the folder, where one file of it was named."""
    if origin.path is None:
        return origin
    path = origin.path.resolve()
    return Origin(str(path.parent if path.is_file() else path))


def literal(text: str) -> str:
    """A string of Python, in double quotes where that needs no more escapes; never the end of a code block."""
    shown = repr(text) if '"' in text else '"' + repr("'" + text)[2:]
    return shown.replace("`", "\\x60")


def _transformers(name: str, arguments: Sequence[str], remark: str = "") -> Loader:
    return Loader((f"from transformers import {name}",), f"{name}.from_pretrained({', '.join(arguments)})", remark)


def _diffusers(name: object, arguments: Sequence[str], stored: str | None) -> Loader:
    """Its loader takes float32 unless it is told the dtype."""
    if not is_name(name):
        return Loader((), None, f"{_NO_CLASS}: `base` is the model that your own code loads.")
    told = [f"torch_dtype=torch.{stored}"] if stored in ("float16", "bfloat16") else []
    imports = (*["import torch"] * len(told), f"from diffusers import {name}")
    return Loader(imports, f"{name}.from_pretrained({', '.join([*arguments, *told])})")


def _auto_class(config: Mapping[str, Any], name: object) -> str | None:
    """The Auto class under which the model's own code registers the class of that name."""
    mapping = config.get("auto_map")
    for auto, target in mapping.items() if isinstance(mapping, dict) else ():
        if is_name(auto) and auto.startswith("AutoModel") and str(target).rpartition(".")[2] == name:
            return str(auto)
    return None


def _dtype(config: Mapping[str, Any], dtypes: Mapping[str, str]) -> str:
    """ "auto" takes what config.json states; where that is less than what is stored, it would round the residual."""
    stored, stated = _widest(dtypes), config.get("dtype", config.get("torch_dtype"))
    widened = any(now != before for now, before in dtypes.items())
    exact = stated in (stored, "float32", "float64") or (stated is None and not widened)
    return _AUTO if exact or stored is None else f'dtype="{stored}"'


def _widest(dtypes: Mapping[str, str]) -> str | None:
    found = [name for dtype, name in _TORCH.items() if dtype in dtypes]
    return found[-1] if found else None


def _variant(shards: Iterable[str]) -> list[str]:
    """The word that both libraries look for in the names of files, as in model.fp16.safetensors."""
    found = {hit[1] for name in shards if (hit := _VARIANT.fullmatch(name))}
    return [f"variant={literal(found.pop())}"] if len(found) == 1 else []


def _arguments(place: Origin) -> list[str]:
    """What `from_pretrained` takes to find the files."""
    if place.path is not None:
        return [literal(str(place.path))]
    subfolder = [f"subfolder={literal(place.subfolder)}"] if place.subfolder else []
    return [literal(place.location), f"revision={literal(place.revision or '')}", *subfolder]


def _timm_name(place: Origin) -> str:
    return f"local-dir:{place.path}" if place.path is not None else f"hf-hub:{place.location}@{place.revision}"


def _where(place: Origin) -> str:
    return str(place.path) if place.path is not None else f"{place.text} at {place.revision}"
