"""What the process has set for its own arithmetic changes no byte of a result, and is as it was afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools import analyze, convert, export, initialize, merge, residualize, verify
from ailora_tools.checkpoint.arithmetic import ieee
from ailora_tools.errors import AiloraError

SIZES = {"vocab_size": 64, "hidden_size": 768, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def precision(place: tuple[str, str], value: str) -> None:
    torch._C._set_fp32_precision_setter(*place, value)


def older(value: str) -> None:
    torch.set_float32_matmul_precision(value)


# Settings of the process or the thread, by what sets them; a context is entered around the calls.
SETTINGS: dict[str, Callable[[], AbstractContextManager[Any] | None]] = {
    "precision high": lambda: older("high"),
    "precision medium": lambda: older("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cuda tf32": lambda: precision(("cuda", "matmul"), "tf32"),
    "mkldnn bf16": lambda: precision(("mkldnn", "matmul"), "bf16"),
    "all of mkldnn bf16": lambda: precision(("mkldnn", "all"), "bf16"),
    "all of it tf32": lambda: precision(("generic", "all"), "tf32"),
    "both interfaces": lambda: (older("medium"), precision(("mkldnn", "matmul"), "ieee"))[0],
    "default dtype bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "default dtype float64": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "seed": lambda: torch.manual_seed(1234) and None,
    "flush subnormals": lambda: torch.set_flush_denormal(True) and None,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}
_PLACES = [(backend, of) for backend in ("generic", "cuda", "mkldnn") for of in ("all", "matmul")
           if (backend, of) != ("generic", "matmul")]  # fmt: skip


def state() -> dict[str, object]:
    """Everything that is set, as far as it can be asked for."""
    return {
        **{f"{backend} {of}": torch._C._get_fp32_precision_getter(backend, of) for backend, of in _PLACES},
        "older": told(torch.get_float32_matmul_precision),
        "allow_tf32": told(lambda: torch.backends.cuda.matmul.allow_tf32),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "flushes": float.fromhex("0x1p-1074") * float("1") == 0.0,
        "autocast": torch.is_autocast_enabled("cpu"),
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
    }


def told(ask: Callable[[], object]) -> object:
    """The older interface refuses to answer where the newer one was used."""
    try:
        return ask()
    except RuntimeError:
        return "mixed"


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    yield
    for place in (*_PLACES, ("cuda", "matmul"), ("mkldnn", "matmul")):
        precision(place, "none")
    older("highest")
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


def inside(setting: str) -> AbstractContextManager[Any]:
    return SETTINGS[setting]() or nullcontext()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W^Q with a slow decay, of float32 as well as of bfloat16, so that products weigh in every bit."""
    tensors = llama_tensors(layers=1, hidden=768, kv=384, dtype=torch.bfloat16)
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].float()
    sizes = {**SIZES, **HEADS, "tie_word_embeddings": True}
    return write_checkpoint(tmp_path_factory.mktemp("source") / "model", tensors, **sizes)


def life(source: Path, work: Path) -> dict[str, bytes]:
    """Every verb that computes; the bytes of the weights, the factors, and the metrics that come out."""
    made = initialize(source, 8, output=work / "init")
    started = initialize(source, 8, method="q=principal,v=random-orthonormal", no_base=True, output=work / "other")
    checked = [verify(made.folder), verify(started.folder)]
    assert all(one.holds for one in checked)
    convert(made.adapter, made.folder, work / "plain", rank=4)
    merge(made.folder, made.adapter, work / "merged")
    export(made.adapter, "mlx", work / "mlx", base=source)
    analyze(source, against=[work / "merged"], output=work / "report", rank=8)
    names = ("*.safetensors", "metrics.csv", "ailora.json")
    files = [path for name in names for path in sorted(work.rglob(name))]
    return {path.relative_to(work).as_posix(): path.read_bytes().replace(str(work).encode(), b"") for path in files}


@pytest.fixture(scope="module")
def usual(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return life(source, tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_changes_a_byte_and_all_are_as_before(
    setting: str, source: Path, usual: dict[str, bytes], tmp_path: Path
) -> None:
    with inside(setting):
        before = state()
        found = life(source, tmp_path)
        assert state() == before
    assert found.keys() == usual.keys()
    different = [name for name in found if found[name] != usual[name] and not name.endswith("ailora.json")]
    assert not different


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_error_puts_everything_back(setting: str, tmp_path: Path) -> None:
    tensors = llama_tensors(layers=1)
    tensors["model.layers.0.self_attn.q_proj.weight"][3, 4] = torch.nan
    folder = write_checkpoint(tmp_path / "model", tensors)
    with inside(setting):
        before = state()
        with pytest.raises(AiloraError, match="NaN"):
            initialize(folder, 4, output=tmp_path / "out")
        assert state() == before


@pytest.mark.parametrize("setting", [name for name in SETTINGS if "device" not in name])
def test_residualize_is_what_init_wrote_under_every_setting(setting: str, source: Path, tmp_path: Path) -> None:
    made = initialize(source, 8, output=tmp_path / "out")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS)).bfloat16()
    attention = model.model.layers[0].self_attn
    attention.q_proj.weight = torch.nn.Parameter(attention.q_proj.weight.float())
    held = llama_tensors(layers=1, hidden=768, kv=384)
    with torch.no_grad():
        for name in ("q_proj", "v_proj"):
            getattr(attention, name).weight.copy_(held[f"model.layers.0.self_attn.{name}.weight"])
    with inside(setting):
        before = state()
        taken = residualize(model, made.adapter)
        assert state() == before
    assert taken.exact is True
    taken.undo()
    assert torch.equal(attention.q_proj.weight, held["model.layers.0.self_attn.q_proj.weight"].float())


def test_what_threads_share_is_put_back_by_the_last_of_them() -> None:
    older("high")
    first, second = threading.Event(), threading.Event()
    seen: list[str] = []

    def wait() -> None:
        with ieee():
            first.set()
            second.wait(10)
            seen.append(torch.get_float32_matmul_precision())

    other = threading.Thread(target=wait)
    other.start()
    first.wait(10)
    with ieee():
        pass
    second.set()
    other.join()
    assert seen == ["highest"] and torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("setting", ["precision high", "default dtype bfloat16", "autocast", "flush subnormals"])
def test_inside_it_is_ieee(setting: str) -> None:
    with inside(setting), ExitStack() as stack:
        stack.enter_context(ieee())
        tiny = torch.full((4,), 1e-40)
        assert tiny.dtype == torch.float32 and bool((tiny * 1.0 > 0).all())
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert not torch.backends.cuda.matmul.allow_tf32
