"""The class that a config.json names, built without memory on the meta device and compared with the plan.

`module_tree` runs this file as an isolated script, so it imports nothing of the package. The config is a stranger's,
and what it makes the class do is bounded here; not even transformers' own means to fetch or run code are left.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

CPU_SECONDS = 120
ROOM = 2 << 30  # bytes beside the imported libraries; a class of 405B parameters takes a tenth of it
_MOST = 4096  # layers or experts; the largest published models have some hundreds
_SHOWN = 64  # names of an answer; a file can make a class have millions
_COUNTS = ("layer", "block", "depth", "expert")
# Names of code, of files and of kernels, and how weights are stored: nothing of it decides which modules there are.
_DROPPED = (
    "attn_implementation", "experts_implementation", "auto_map", "custom_pipelines", "trust_remote_code", "use_kernels",
    "kernel_config", "dtype", "quantization_config", "backbone_kwargs", "pretrained", "checkpoint_path", "name_or_path",
)  # fmt: skip
_LEAVING = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "pickle.find_class")


def look(question: Mapping[str, Any], before: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """`question` has a "config", and what is asked about its class: see `_compared`, `_parts`, `_linear`. Or
    {"unknown": reason}: any failure of the class is that, and no error. `before` is called when the libraries are
    loaded and the class is not yet built."""
    model, reason = _built(question["config"], before)
    if model is None:
        return {"unknown": reason}
    if question.get("linear"):
        return _linear(model)
    return _parts(model, question) if "ends" in question else _compared(model, question)


def _built(stated: Any, before: Callable[[], None]) -> tuple[Any, str]:
    """The model on the meta device; None and the reason where there is none."""
    config = harmless(stated)
    if count := _excessive(config):
        return None, f"config.json asks for {count}"
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    if name is None:
        return None, "no class named"
    try:
        import torch
        import transformers
    except ImportError as error:
        return None, f"transformers cannot be imported ({error})"
    try:
        kind = getattr(transformers, name, None)  # imports the module of the class
    except Exception as error:  # whatever a library that it wants raises
        return None, f"{name} cannot be imported ({type(error).__name__})"
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        return None, f"transformers {transformers.__version__} has no class {name}"
    try:
        before()
        with torch.device("meta"):
            return kind(_own_config(kind.config_class, config)), ""
    except Exception as error:  # whatever the code of the class raises for this config
        return None, f"{name} could not be built ({type(error).__name__})"


def _compared(model: Any, question: Mapping[str, Any]) -> dict[str, Any]:
    """Of planned "modules" with their sides, PEFT's "targets", and the names "held" by the file besides: which modules
    the class lacks, which are hit besides, and which of the class's own are "unclaimed": of the size of a lacking one,
    and named by nothing in the file."""
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    tree = {
        path: sorted(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    wanted, name, version = question["modules"], type(model).__name__, transformers.__version__
    hit = [path for path in tree if any(path == end or path.endswith(f".{end}") for end in question["targets"])]
    missing = sorted(wanted.keys() - tree.keys())
    sizes, named = [sorted(wanted[path]) for path in missing], {*wanted, *question["held"]}
    unclaimed = sorted(path for path, size in tree.items() if size in sizes and path not in named)
    turned = [path for path, module in model.named_modules() if isinstance(module, Conv1D) and path in wanted]
    return {
        "class": name, "version": version, "missing": missing, "turned": turned,
        "extra": sorted(set(hit) - wanted.keys()),
        "unclaimed": {path: tree[path] for path in unclaimed[:_SHOWN]},
    }  # fmt: skip


def _linear(model: Any) -> dict[str, Any]:
    """ "linear": path of every linear layer but the output embedding, as PEFT takes them by "all-linear" -> (out, in)
    and whether it is stored the other way round, as a Conv1D."""
    import torch
    from transformers.pytorch_utils import Conv1D

    output = None
    with suppress(Exception):  # classes without one raise what they like
        output = model.get_output_embeddings()
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output:
            turned = isinstance(module, Conv1D)
            found[path] = (tuple(reversed(module.weight.shape)) if turned else tuple(module.weight.shape), turned)
    return {"class": type(model).__name__, "linear": found}


def _parts(model: Any, question: Mapping[str, Any]) -> dict[str, Any]:
    """Every module whose path ends in one of the "ends", as PEFT matches modules_to_save, and what its state holds; the
    path of the input embedding with its state; the deviation that the class draws new weights with; "unheld":
    parameters that are not among those "held" by the file, and whether the "published" class has them."""
    ends = question["ends"]
    modules = list(model.named_modules(remove_duplicate=False))
    hit = {path: module for path, module in modules if path and path.endswith(tuple(ends))}
    if len(hit) > _SHOWN:
        return {"unknown": f"{len(hit)} modules of {type(model).__name__} have such names"}
    homes: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        homes.setdefault(id(parameter), []).append(path)
    embedding = None
    with suppress(Exception):  # classes without one raise what they like
        embedding = model.get_input_embeddings()
    name = next((path for path, module in model.named_modules() if module is embedding), None)
    shown = {**hit, **({name: embedding} if name else {})}
    states = {path: {key: _state(module, key, held, homes) for key, held in module.state_dict(keep_vars=True).items()}
              for path, module in shown.items()}  # fmt: skip
    return {"class": type(model).__name__, "hit": sorted(hit), "embedding": name, "states": states,
            "std": _deviation(model.config), "unheld": _unheld(model, homes.values(), question)}  # fmt: skip


def _unheld(model: Any, homes: Iterable[list[str]], question: Mapping[str, Any]) -> dict[str, bool]:
    """Path of a parameter that the file does not name -> whether the published class has it: then the file may name it
    otherwise. Under either class a body may stand below its prefix or not."""
    held = set(question["held"])
    lacking = [same[0] for same in homes if not held.intersection(same)]
    if not lacking:
        return {}
    config = {**question["config"], "architectures": [question["published"]]}
    published, _ = _built(config, lambda: None)
    prefix = f"{model.base_model_prefix}."
    known = {path.removeprefix(prefix) for path, _ in published.named_parameters()} if published is not None else set()
    return {path: path.removeprefix(prefix) in known for path in lacking[:_SHOWN]}


def _state(module: Any, key: str, held: Any, homes: Mapping[int, list[str]]) -> dict[str, Any]:
    """Shape; how a new one starts ("" where no rule is known); paths of the parameters that are this very one."""
    owner, _, last = key.rpartition(".")
    kind = type(module.get_submodule(owner)).__name__
    start = "zeros" if last == "bias" else "" if last != "weight" else "ones" if "Norm" in kind else "normal"
    matrix = kind.startswith(("Linear", "Conv", "Embedding"))
    known = start != "normal" or matrix
    return {"shape": list(held.shape), "start": start if known else "", "same": homes.get(id(held), [])}


def _deviation(config: Any) -> float:
    """As `PreTrainedModel._init_weights` looks it up."""
    stated = getattr(config, "initializer_range", None) or getattr(config, "init_std", None)
    if stated is None:
        stated = getattr(config.get_text_config(), "initializer_range", None)
    return float(stated) if isinstance(stated, int | float) and 0 < stated <= 1 else 0.02


def _own_config(kind: Any, config: dict[str, Any]) -> Any:
    """The config of a class that is built by a part of it, such as one tower: as `from_pretrained` finds that part."""
    part = config.get(kind.base_config_key) if kind.base_config_key else None
    if not isinstance(part, dict) and config.get("model_type") not in (None, kind.model_type):
        parts = (value for value in config.values() if isinstance(value, dict))
        part = next((value for value in parts if value.get("model_type") == kind.model_type), None)
    return kind.from_dict(part if isinstance(part, dict) else config)


def harmless(config: Any) -> Any:
    """The config, at any depth without what names code, files, kernels or the type of the weights."""
    if isinstance(config, list):
        return [harmless(value) for value in config]
    if not isinstance(config, dict):
        return config
    if config.keys() == {"__float__"}:  # transformers 5 writes infinity so, and reads it back before the class sees it
        return _number(config["__float__"])
    return {key: harmless(value) for key, value in config.items() if not any(word in key for word in _DROPPED)}


def _number(text: Any) -> float | None:
    with suppress(TypeError, ValueError):
        return float(text)
    return None


def _excessive(config: Any) -> str:
    """The first number of layers, blocks or experts that no model has, as "num_hidden_layers 1000000000"."""
    if isinstance(config, list):
        return next(filter(None, map(_excessive, config)), "")
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, int | float) and value > _MOST and any(word in key.lower() for word in _COUNTS):
            return f"{key[:40]} {min(value, 10**300):.4g}"
        if found := _excessive(value):
            return found
    return ""


def _bound() -> None:
    """From here on little time and memory, no connection, no program, no pickle; limits where the system has them."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        with open("/proc/self/statm") as pages:
            data = int(pages.read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + ROOM, data + ROOM))
    sys.addaudithook(_stay)


def _stay(event: str, _: object) -> None:
    if event.startswith(_LEAVING):
        raise PermissionError(f"{event} while a class is built")


def _answer() -> None:
    """The script: where libraries lie is its only argument, the question comes on stdin, the answer goes to stdout."""
    gc.disable()  # what the libraries make while they load stays to the end, and the end is near
    sys.path[:] = json.loads(sys.argv[1])
    if hasattr(os, "nice"):
        os.nice(10)
    print(json.dumps(look(json.load(sys.stdin), _bound)))


if __name__ == "__main__":
    _answer()
