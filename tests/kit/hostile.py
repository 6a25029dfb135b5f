"""Documents as a stranger might write them: any value of a good one replaced, dropped or doubled, and what reads it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ailora_tools import (
    AiloraError,
    analyze,
    bitfit,
    convert,
    export,
    initialize,
    inspect_checkpoint,
    lr_groups,
    merge,
    render_report,
    train_biases,
    verify,
)  # fmt: skip
from ailora_tools.output.spans import sha256
from kit.checkpoints import llama_tensors, write_checkpoint

DROPPED, ADDED = "dropped", "another key"
DEEP = "nested without end"
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2.5, 1e9, 10**18, 1 << 40, 10**400, -(10**30), 1e308, 5e-324, float("nan"),
    float("inf"), "", "x", "x" * 5000, "a\0b", "\ud800", "../../etc/passwd", "/etc/passwd", "~nobody-here/x", "16",
    "</script>", "\x1b[2J", "(([a-z_0-9.]+)*)*X", "(", [], [[]], [None], [1, 2], {}, {"a": None}, {"a": 1}, DEEP,
    DROPPED, ADDED,
)  # fmt: skip
Path_ = tuple[Any, ...]
Readers = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Document:
    """One kind of file: a good one, how a changed one is put in its place, and what then reads it, by verb."""

    good: dict[str, Any]
    put: Callable[[str], None]
    readers: Readers

    @property
    def places(self) -> list[Path_]:
        """Every value in the file, of long lists and mappings the first ones; the whole file is one, too."""
        return list(_places(self.good, ()))

    def attempt(self, place: Path_, value: Any, verb: str) -> str:
        """'read' or 'refused'; whatever else is raised goes through."""
        self.put(changed(self.good, place, value))
        try:
            self.readers[verb]()
        except AiloraError as error:
            assert error.problem, "an error says something"
            str(error).encode()
            return "refused"
        return "read"


def _places(value: Any, path: Path_) -> Iterator[Path_]:
    yield path
    keys: Sequence[Any] = list(value)[:60] if isinstance(value, dict) else range(len(value)) if _is_list(value) else ()
    for key in keys[:2] if _is_list(value) else keys:
        yield from _places(value[key], (*path, key))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def changed(good: Any, place: Path_, value: Any) -> str:
    """The JSON text with the value at `place` replaced."""
    document = copy.deepcopy(good)
    if not place:
        document = value if value not in (DROPPED, ADDED) else {}
    else:
        inside = document
        for key in place[:-1]:
            inside = inside[key]
        if value == DROPPED:
            del inside[place[-1]]
        elif value == ADDED and isinstance(inside, dict):
            inside["another" + str(place[-1])] = inside[place[-1]]
        else:
            inside[place[-1]] = value
    return json.dumps(document).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)


NAMES = (
    "config.json", "config.json of gpt_neox", "config.json of falcon", "config.json of deepseek_v3",
    "config.json of openelm", "config.json of llava", "config.json of GPTQ", "index", "adapter_config.json",
    "ailora.json", "analysis.json", "analysis.json of a fine-tune", "ranks.json", "lr_groups.json", "bitfit.json",
)  # fmt: skip


def documents(root: Path) -> dict[str, Document]:
    """All kinds of files, with models of a few kilobytes below `root`."""
    torch.manual_seed(0)
    model = write_checkpoint(root / "model", llama_tensors(hidden=16, kv=8), shards=2, **_LLAMA)
    start = initialize(model, 2, output=root / "start").folder
    assert start is not None
    out = root / "out"

    def fresh() -> Path:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(root / "out.partial", ignore_errors=True)
        return out

    return {
        **{name: _config(root / name, tensors, config) for name, (tensors, config) in _families().items()},
        "config.json": _config(model_of(root / "described", model), None, None, start, fresh),
        "index": _index(model_of(root / "indexed", model), fresh),
        "adapter_config.json": _adapter(root, model, start, fresh),
        "ailora.json": _manifest(root, model, start, fresh),
        "analysis.json": _analysis(root, model, None),
        "analysis.json of a fine-tune": _analysis(root, model, start / "ailora_init"),
        "ranks.json": _ranks(root, model),
        "lr_groups.json": _training(root, start),
        "bitfit.json": _biases(root),
    }


_LLAMA = {
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "hidden_size": 16,
    "text_config": {"num_hidden_layers": 2, "num_attention_heads": 2},
    "quantization_config": {"quant_method": "gptq", "bits": 4, "config_groups": {"a": {"weights": {"num_bits": 4}}}},
}  # fmt: skip


def model_of(folder: Path, source: Path) -> Path:
    """A copy of a folder."""
    shutil.copytree(source, folder)
    return folder


def _without_base(adapter: Path) -> Path:
    """An adapter that does not say which base it is for, so that none is the wrong one."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    return adapter


def _looks(folder: Path) -> Readers:
    """What reads config.json without writing."""
    return {
        "inspect": lambda: inspect_checkpoint(folder),
        "inspect all": lambda: inspect_checkpoint(folder, roles=("q", "k", "v")),
        "init": lambda: initialize(folder, 2, output=folder.parent / "dry", dry_run=True, transformers_major=4),
    }


def _config(
    folder: Path, tensors: dict[str, torch.Tensor] | None, config: dict[str, Any] | None,
    start: Path | None = None, fresh: Callable[[], Path] | None = None,
) -> Document:  # fmt: skip
    path = folder / "config.json"
    if tensors is not None:
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
    good = config or json.loads(path.read_text())
    readers = _looks(folder)
    if start and fresh:
        loose = _without_base(model_of(folder.parent / "loose", start / "ailora_init"))
        readers |= {
            "analyze": lambda: analyze(folder, rank=2, output=fresh(), heads=True),
            "merge": lambda: merge(folder, loose, fresh()),
            "export": lambda: export(start / "ailora_init", "torchtune", fresh(), base=folder),
        }
    return Document(good, path.write_text, readers)


def _index(model: Path, fresh: Callable[[], Path]) -> Document:
    path = model / "model.safetensors.index.json"
    return Document(
        json.loads(path.read_text()),
        path.write_text,
        {
            "inspect": lambda: inspect_checkpoint(model),
            "init": lambda: initialize(
                model, 2, output=fresh(), base_dtype="float32", transformers_major=4, overwrite=True
            ),
        },
    )


def _adapter(root: Path, model: Path, start: Path, fresh: Callable[[], Path]) -> Document:
    trained, checked = model_of(root / "trained", start / "ailora_init"), model_of(root / "checked", start)
    good = json.loads((trained / "adapter_config.json").read_text())
    good |= {
        "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2}, "use_dora": False, "exclude_modules": None,
        "layers_to_transform": None, "modules_to_save": None,
    }  # fmt: skip

    def put(text: str) -> None:
        (trained / "adapter_config.json").write_text(text)
        (checked / "ailora_init" / "adapter_config.json").write_text(text)

    return Document(
        good,
        put,
        {
            "convert": lambda: convert(trained, start, fresh()),
            "merge": lambda: merge(start, trained, fresh()),
            "export mlx": lambda: export(trained, "mlx", fresh()),
            "export torchtune": lambda: export(trained, "torchtune", fresh(), base=model),
            "export diffusers": lambda: export(trained, "diffusers", fresh(), component="unet"),
            "analyze": lambda: analyze(model, rank=2, output=fresh(), against=[trained]),
            "verify": lambda: verify(checked),
        },
    )


def _manifest(root: Path, model: Path, start: Path, fresh: Callable[[], Path]) -> Document:
    folder = model_of(root / "claimed", start)
    adapter = folder / "ailora_init"

    def put(text: str) -> None:
        """Sealed with its own hash again, where it can be."""
        try:
            body = json.loads(text)
            body.pop("sha256", None)
            text = _sealed({**body, "sha256": sha256(_sealed(body).encode("utf-8", "backslashreplace"))})
            (folder / "ailora.json").write_text(text)
        except (ValueError, AttributeError, TypeError, RecursionError):
            (folder / "ailora.json").write_bytes(text.encode(errors="surrogatepass"))

    return Document(
        json.loads((start / "ailora.json").read_text()),
        put,
        {
            "verify": lambda: verify(folder),
            "verify --source": lambda: verify(folder, source=model),
            "convert": lambda: convert(start / "ailora_init", folder, fresh()),
            "merge": lambda: merge(folder, start / "ailora_init", fresh()),
            "export": lambda: export(adapter, "diffusers", fresh()),
        },
    )


def _analysis(root: Path, model: Path, against: Path | None) -> Document:
    folder = root / ("against" if against else "alone")
    given = [against] if against else []
    analyze(model, rank=2, output=folder, suggest_ranks=2, suggest_targets=2, heads=True, against=given)
    path = folder / "changed.json"
    return Document(
        json.loads((folder / "analysis.json").read_text()),
        path.write_text,
        {"report": lambda: render_report(path, folder / "page.html")},
    )


def _ranks(root: Path, model: Path) -> Document:
    path = root / "ranks.json"
    return Document(
        json.loads((root / "alone" / "ranks.json").read_text()),
        path.write_text,
        {"init": lambda: initialize(model, ranks=path, output=root / "ranked", dry_run=True, transformers_major=4)},
    )


class _Lora(nn.Module):
    """Parameters with the names that PEFT gives them."""

    def __init__(self) -> None:
        super().__init__()
        for layer in range(2):
            for name in ("q_proj", "v_proj"):
                path = f"base_model.model.model.layers.{layer}.self_attn.{name}".split(".")
                inside: nn.Module = self
                for step in [*path, "lora_A"]:
                    if not hasattr(inside, step):
                        inside.add_module(step, nn.Module())
                    inside = getattr(inside, step)
                inside.add_module("default", nn.Linear(2, 2))


def _training(root: Path, start: Path) -> Document:
    folder, module = model_of(root / "groups", start), _Lora()
    path = folder / "lr_groups.json"
    return Document(
        json.loads(path.read_text()),
        path.write_text,
        {"lr_groups": lambda: lr_groups(module, folder / "ailora_init", 1e-3)},
    )


def _biases(root: Path) -> Document:
    tensors = llama_tensors(hidden=16, kv=8) | {"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}
    folder = bitfit(write_checkpoint(root / "biased", tensors), root / "biases").folder
    module = nn.ModuleDict({"q_proj": nn.Linear(2, 2)})
    path = folder / "bitfit.json"
    return Document(
        json.loads(path.read_text()), path.write_text, {"train_biases": lambda: train_biases(module, folder)}
    )


def _families() -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Tensors and config.json of models whose layout, or whose numbers, config.json decides."""
    neox, falcon = "gpt_neox.layers.{}.attention", "transformer.h.{}.self_attention"
    return {
        "config.json of gpt_neox": (
            {f"{neox.format(at)}.query_key_value.weight": torch.randn(48, 16) for at in range(2)},
            {"model_type": "gpt_neox", "num_attention_heads": 2, "num_hidden_layers": 2},
        ),
        "config.json of falcon": (
            {f"{falcon.format(at)}.query_key_value.weight": torch.randn(32, 16) for at in range(2)},
            {"model_type": "falcon", "num_attention_heads": 2, "num_kv_heads": 1, "new_decoder_architecture": True,
             "multi_query": True, "num_hidden_layers": 2},
        ),
        "config.json of deepseek_v3": (
            {f"model.layers.0.self_attn.{name}.weight": torch.randn(rows, 16)
             for name, rows in (("q_proj", 16), ("kv_b_proj", 24))},
            {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_attention_heads": 2,
             "qk_nope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 16, "num_hidden_layers": 1},
        ),
        "config.json of openelm": (
            {"transformer.layers.0.attn.qkv_proj.weight": torch.randn(32, 16)},
            {"model_type": "openelm", "num_query_heads": [2, 2], "num_kv_heads": [1, 1]},
        ),
        "config.json of llava": (
            {f"language_model.model.layers.0.self_attn.{name}.weight": torch.randn(16, 16)
             for name in ("q_proj", "v_proj")},
            {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
             "text_config": {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2}},
        ),
        "config.json of GPTQ": (
            {f"model.layers.0.self_attn.{name}.{kind}": tensor
             for name in ("q_proj", "v_proj")
             for kind, tensor in (("qweight", torch.zeros(2, 16, dtype=torch.int32)),
                                  ("qzeros", torch.zeros(1, 2, dtype=torch.int32)), ("scales", torch.ones(1, 16)))},
            {"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1,
             "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16}},
        ),
    }  # fmt: skip


def _sealed(body: dict[str, Any]) -> str:
    """As a manifest is spelt, and NaN with it, which the tool itself does not write."""
    text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()
