"""Every dtype name there is or may be, at every place of a checkpoint: read, copied untouched, or a named error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit.checkpoints import tree
from safetensors.torch import save_file

from ailora_tools import analyze, initialize, inspect_checkpoint, merge, verify
from ailora_tools.checkpoint.header import DTYPE_BITS, FLOATS
from ailora_tools.errors import CheckpointError, TargetError

Q = "model.layers.0.self_attn.q_proj.weight"
V = "model.layers.0.self_attn.v_proj.weight"
FUTURE = ("XYZ9", "f32", "BF8", "F8_E3M4", "")
OTHERS = tuple(name for name in DTYPE_BITS if name not in FLOATS)


def checkpoint(folder: Path, changed: dict[str, tuple[str, tuple[int, int]]]) -> Path:
    """A Llama of one layer in bfloat16, with some tensors of other dtypes (bytes of 0x11), laid out by hand."""
    plain = dict.fromkeys((Q, V, "model.embed_tokens.weight"), ("BF16", (48, 48)))
    entries, data, start = {}, b"", 0
    for name, (dtype, shape) in {**plain, **changed}.items():
        nbytes = math.prod(shape) * DTYPE_BITS.get(dtype, 8) // 8
        held = (
            torch.randn(shape).bfloat16().view(torch.uint8).numpy().tobytes() if dtype == "BF16" else b"\x11" * nbytes
        )
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + nbytes]}
        data, start = data + held, start + nbytes
    body = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    body += b" " * (-len(body) % 8)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(len(body).to_bytes(8, "little") + body + data)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1})
    )
    return folder


def adapter(folder: Path) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    pair = {"A": torch.randn(2, 48, generator=generator), "B": torch.randn(48, 2, generator=generator)}
    stem = f"base_model.model.{Q.removesuffix('.weight')}"
    save_file(
        {f"{stem}.lora_{side}.weight": value for side, value in pair.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    return folder


def _init(model: Path, work: Path) -> None:
    assert verify(initialize(model, 2, output=work / "out").folder).holds


def _init_wider(model: Path, work: Path) -> None:
    assert verify(initialize(model, 2, base_dtype="float32", output=work / "out").folder).holds


def _init_no_base(model: Path, work: Path) -> None:
    assert verify(initialize(model, 2, no_base=True, output=work / "out").folder).holds


VERBS: dict[str, Callable[[Path, Path], object]] = {
    "inspect": lambda model, work: inspect_checkpoint(model),
    "analyze": lambda model, work: analyze(model, rank=2, output=work / "out"),
    "init": _init,
    "init, wider": _init_wider,
    "init --no-base": _init_no_base,
    "merge": lambda model, work: merge(model, adapter(work / "adapter"), work / "out"),
}


def refused(verb: str, model: Path, work: Path, words: str, kind: type[Exception] = TargetError) -> None:
    """A named error that says which tensor, and nothing written."""
    before = tree(work)
    with pytest.raises(kind, match=words):
        VERBS[verb](model, work)
    left = {name for name in tree(work) if not name.startswith("adapter/")}
    assert left == before.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_a_matrix_in_any_other_dtype_is_refused_by_name(verb: str, tmp_path: Path) -> None:
    for dtype in OTHERS:
        work = tmp_path / dtype
        refused(
            verb, checkpoint(work / "model", {Q: (dtype, (48, 48))}), work, rf"q_proj\.weight is stored as {dtype}\b"
        )


@pytest.mark.parametrize("verb", VERBS)
def test_a_scale_in_any_other_dtype_is_refused_by_name(verb: str, tmp_path: Path) -> None:
    for dtype in OTHERS:
        work = tmp_path / dtype
        parts = {Q: ("F8_E4M3", (48, 48)), f"{Q}_scale": (dtype, (48, 2))}
        model = checkpoint(work / "model", parts)
        if dtype == "F8_E8M0" and verb in ("inspect", "analyze", "init --no-base"):
            VERBS[verb](model, work)
        elif (
            dtype == "F8_E8M0" and verb == "merge"
        ):  # it writes the numbers, in a dtype that config.json does not state
            merge(model, adapter(work / "adapter"), work / "out", dtype="float32")
        else:
            refused(verb, model, work, r"q_proj\.weight(_scale)? is stored as ")


@pytest.mark.parametrize("verb", VERBS)
def test_another_tensor_in_any_dtype_is_left_as_it_is(verb: str, tmp_path: Path) -> None:
    others = {f"model.layers.0.mlp.{dtype}.weight": (dtype, (48, 32)) for dtype in DTYPE_BITS}
    model = checkpoint(tmp_path / "model", others)
    VERBS[verb](model, tmp_path)
    written = tmp_path / "out" / "model.safetensors"
    if written.exists():
        before, after = stored(model / "model.safetensors"), stored(written)
        assert {name: after[name] for name in others} == {name: before[name] for name in others}


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    """Dtype and bytes of every tensor of a file."""
    raw = path.read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:data])
    entries.pop("__metadata__")
    spans = {name: (entry["dtype"], *entry["data_offsets"]) for name, entry in entries.items()}
    return {name: (dtype, raw[data + low : data + high]) for name, (dtype, low, high) in spans.items()}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", [Q, "model.layers.0.mlp.up_proj.weight"])
def test_a_dtype_that_nobody_knows_yet_is_a_named_error(verb: str, name: str, tmp_path: Path) -> None:
    for number, dtype in enumerate(FUTURE):
        work = tmp_path / str(number)
        words = rf"tensor '{name}' has the unknown dtype '{dtype}'"
        refused(verb, checkpoint(work / "model", {name: (dtype, (48, 48))}), work, words, CheckpointError)
