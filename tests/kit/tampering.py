"""What someone can do to a folder of `init`, sealing its manifest again or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora_tools.adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, tensor_names
from ailora_tools.checkpoint.stream import matrix_bytes
from ailora_tools.matrices.gather import gather
from ailora_tools.matrices.layouts import Part
from ailora_tools.output.names import ADAPTER_FOLDER, OFFSET_FOLDER
from ailora_tools.output.spans import sha256, sha256_file, write_json

INDEX = "model.safetensors.index.json"
CONFIG = f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}"
WEIGHTS = f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}"
OFFSET = f"{OFFSET_FOLDER}/{ADAPTER_WEIGHTS}"
Tensors = dict[str, Tensor]
Body = dict[str, Any]


def layer(number: int, leaf: str) -> str:
    """The module of a Llama."""
    return f"model.layers.{number}.self_attn.{leaf}"


class Tampered:
    """A folder and the ways to change it; `seal` makes the manifest fit again, hashes of every record included."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder, self.source = folder, source

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def json(self, name: str, **changes: Any) -> None:
        path = self / name
        write_json(path, {**json.loads(path.read_text()), **changes})

    def tensors(self, name: str, change: Callable[[Tensors], object]) -> None:
        """Change what a safetensors file holds, with its metadata kept."""
        with safe_open(self / name, "pt") as file:
            metadata = file.metadata()
        held = load_file(self / name)
        change(held)
        save_file({key: value.contiguous().clone() for key, value in held.items()}, self / name, metadata)

    def shard(self, tensor: str) -> str:
        index = self / INDEX
        return json.loads(index.read_text())["weight_map"][tensor] if index.exists() else "model.safetensors"

    def weight(self, tensor: str, change: Callable[[Tensor], Tensor]) -> None:
        self.tensors(
            self.shard(tensor), lambda held: held.update({tensor: change(held[tensor]).to(held[tensor].dtype)})
        )

    def factors(self, module: str, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        names = tensor_names(module)
        self.tensors(WEIGHTS, lambda held: held.update(zip(names, change(*(held[key] for key in names)), strict=True)))

    def maps(self, **shards: str) -> None:
        """Entries of the index, with `__` for a dot."""
        path = self / INDEX
        index = json.loads(path.read_text())
        index["weight_map"] |= {name.replace("__", "."): shard for name, shard in shards.items()}
        path.write_text(json.dumps(index))

    def seal(self, edit: Callable[[Body], object] = lambda body: None, *added: str) -> None:
        """Recompute every hash of the manifest, with files `added` to it, after an edit of its own."""
        path = self / "ailora.json"
        body = json.loads(path.read_text())
        body.pop("sha256")
        edit(body)
        body["files"] |= dict.fromkeys(added)
        body["files"] = {
            name: {"size": (self / name).stat().st_size, "sha256": sha256_file(self / name)}
            for name in body["files"]
            if (self / name).is_file()
        }
        for entry in body["modules"]:
            entry |= self._hashes(entry)
        body["sha256"] = sha256(_dump(body).encode())
        path.write_text(_dump(body))

    def _hashes(self, entry: Body) -> Body:
        """By hand, because the record may be one that the tool refuses to read."""
        module, tensor, part = entry["module"], entry["tensor"], entry["part"]
        adapter = load_file(self / WEIGHTS)
        keys = [*tensor_names(module), f"base_model.model.{module}.lora_magnitude_vector"]
        found = {"adapter_sha256": sha256(*(matrix_bytes(adapter[key]) for key in keys if key in adapter))}
        base = self / entry["file"]
        if base.is_file() and tensor in (held := load_file(base)):
            lines = None if part is None else Part(tuple(map(tuple, part["runs"])), part["transposed"])
            found["base_sha256"] = sha256(matrix_bytes(gather(held[tensor], lines)))
        return found


def _dump(body: Body) -> str:
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def swapped(first: str, second: str) -> Callable[[Tensors], object]:
    """The factors of two modules under each other's names."""

    def swap(held: Tensors) -> None:
        for one, other in zip(tensor_names(first), tensor_names(second), strict=True):
            held[one], held[other] = held[other], held[one]

    return swap


def records(change: Callable[[Body], object], **of: Any) -> Callable[[Body], object]:
    """An edit of the manifest: of every record whose fields are these."""

    def edit(body: Body) -> None:
        for entry in body["modules"]:
            if all(entry[name] == value for name, value in of.items()):
                change(entry)

    return edit


def disguised(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Factors far larger than any matrix here."""
    draw = torch.Generator().manual_seed(0)
    return A, 50 * torch.randn(B.shape, generator=draw)
