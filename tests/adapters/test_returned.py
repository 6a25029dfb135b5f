"""The way back: what mlx-lm, torchtune and diffusers save from an exported start becomes a plain LoRA, or is merged."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from kit.adapters import near
from kit.torchtune_model import to_peft
from mlx_lm.utils import load as load_mlx
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ailora_tools import convert, export, initialize, merge
from ailora_tools.adapters.returned import as_peft
from ailora_tools.checkpoint.files import LocalFiles
from ailora_tools.errors import AiloraError, CheckpointError, TargetError
from ailora_tools.output.names import CARD, RESULT

WORDS = ["<s>", *["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "far", "away"]]
IDS = torch.tensor([[1, 5, 9, 2, 6], [7, 3, 0, 4, 8]])
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 16,
    "num_key_value_heads": 2, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0,
    "max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
}


def start(folder: Path, kind: str = "llama", **options: Any) -> Path:
    """folder/model with a tokenizer, and the start that `init` made of it."""
    made, config = MODELS[kind]
    torch.manual_seed(0)
    made(config(**SIZES)).save_pretrained(folder / "model")
    tokens = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    tokens.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<s>", bos_token="<s>").save_pretrained(folder / "model")
    return initialize(folder / "model", 3, output=folder / "init", **options).folder


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


def both_ways(folder: Path, kind: str, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Converted on the original, and merged into the residual base, the adapter is the trained model."""
    made, _ = MODELS[kind]
    original = made.from_pretrained(folder / "model")
    assert not near(logits(original), expected, 1e-2), "training changed something"
    done = convert(folder / "trained", folder / "init", folder / "plain")
    assert near(logits(PeftModel.from_pretrained(original, done.folder)), expected, tolerance)
    merge(folder / "init", folder / "trained", folder / "merged")
    assert near(logits(made.from_pretrained(folder / "merged")), expected, tolerance)


def run_mlx(folder: Path, command: str) -> None:
    """What `export` printed, with a word for DATA and TRAINED, for a few steps."""
    (folder / "data").mkdir()
    for name in ("train", "valid"):
        rows = [json.dumps({"text": " ".join(WORDS[1:8])}), json.dumps({"text": " ".join(WORDS[:3:-1])})]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(rows))
    words = shlex.split(command.replace(" DATA", f" {folder / 'data'}").replace(" TRAINED", f" {folder / 'trained'}"))
    assert words[0] == "mlx_lm.lora"
    few = {"iters": 4, "batch-size": 1, "val-batches": 1, "learning-rate": 0.01, "max-seq-length": 16}
    more = [word for option, value in few.items() for word in (f"--{option}", str(value))]
    ran = subprocess.run([sys.executable, "-m", "mlx_lm", "lora", *words[1:], *more], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_command_of_mlx_lm_starts_from_the_original_and_comes_back(tmp_path: Path) -> None:
    folder = start(tmp_path, alpha=7, layers="1")
    done = export(folder, "mlx", tmp_path / "out")
    settings = yaml.safe_load((done.folder / "lora_config.yaml").read_text())
    assert settings["lora_parameters"]["rank"] == 3 and settings["num_layers"] == 1
    run_mlx(tmp_path, done.load)
    trained, _ = load_mlx(str(folder), adapter_path=str(tmp_path / "trained"))
    first, _ = load_mlx(str(folder), adapter_path=str(done.folder))
    original, _ = load_mlx(str(tmp_path / "model"))
    began, wanted, expected = (
        torch.tensor(model(mx.array(IDS.numpy())).tolist()) for model in (first, original, trained)
    )
    assert near(began, wanted, 1e-5)
    both_ways(tmp_path, "llama", expected)


@pytest.mark.parametrize("kind", list(MODELS))
def test_torchtune_s_adapter_comes_back_with_its_rows_in_place(kind: str, tmp_path: Path) -> None:
    """Trained values in torchtune's rows; what they are in the model's is told by torchtune's own function, which
    permutes the rows of Qwen2, too, that its loader leaves as they are: there by their names alone."""
    folder = start(tmp_path, kind)
    exported = export(folder, "torchtune", tmp_path / "out").folder
    state = torch.load(exported / "adapter_model.pt", weights_only=True)
    state = {key: value + 0.05 * torch.randn_like(value) for key, value in state.items()}
    epoch = tmp_path / "trained"
    epoch.mkdir()
    torch.save(state, epoch / "adapter_model.pt")
    theirs = to_peft(state, 4, 2, 32, None)
    save_file({key: value.contiguous() for key, value in theirs.items()}, epoch / "adapter_model.safetensors")
    config = {"r": 3, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA"}
    (epoch / "adapter_config.json").write_text(json.dumps(config))
    for name in ("config.json", "ailora.json"):
        (epoch / name).write_bytes((folder / name).read_bytes())
    (epoch / "ailora_init").mkdir()
    for path in (folder / "ailora_init").iterdir():
        (epoch / "ailora_init" / path.name).write_bytes(path.read_bytes())
    right = theirs if kind != "qwen2" else _renamed(state)
    (tmp_path / "peft").mkdir()
    save_file(
        {key: value.contiguous() for key, value in right.items()}, tmp_path / "peft" / "adapter_model.safetensors"
    )
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    model = MODELS[kind][0].from_pretrained(folder)
    both_ways(tmp_path, kind, logits(PeftModel.from_pretrained(model, tmp_path / "peft")))
    with pytest.raises(TargetError, match="would count twice"):
        merge(tmp_path / "model", epoch, tmp_path / "wrong")


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    words = {"attn": "self_attn", "lora_a": "lora_A", "lora_b": "lora_B"}
    return {
        "base_model.model.model." + ".".join(words.get(word, word) for word in key.split(".")): value
        for key, value in state.items()
    }


class Malice:
    """Code, if unpickling runs any."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.parametrize("content", [Malice(), [1, 2], {"layers.0.attn.q_proj.lora_a.weight": 3}, {"x": torch.eye(3)}])
def test_no_code_of_a_pickle_runs(content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = start(tmp_path)
    (tmp_path / "trained").mkdir()
    torch.save(content, tmp_path / "trained" / "adapter_model.pt")
    (tmp_path / "trained" / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 3}))
    (tmp_path / "trained" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(AiloraError, match="adapter_model"):
        convert(tmp_path / "trained", folder, tmp_path / "plain")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "plain").exists()


def unet(folder: Path) -> tuple[UNet2DConditionModel, tuple[Any, ...]]:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), cross_attention_dim=24, attention_head_dim=8, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    model.save_pretrained(folder / "model" / "unet")
    return model, (torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 24))


@pytest.mark.parametrize("pipeline", [False, True])
def test_what_diffusers_saves_comes_back(pipeline: bool, tmp_path: Path) -> None:
    original, inputs = unet(tmp_path)
    made = initialize(tmp_path / "model", 3, subfolder="unet", alpha=5, output=tmp_path / "init")
    done = export(made.folder, "diffusers", tmp_path / "out")
    model = UNet2DConditionModel.from_pretrained(made.folder).eval()
    exec(done.load, {"unet": model})  # the line that is printed
    with torch.no_grad():
        assert near(model(*inputs).sample, original(*inputs).sample)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)
        expected = model(*inputs).sample
    model.save_lora_adapter(tmp_path / "trained", adapter_name=next(iter(model.peft_config)))
    if pipeline:
        _as_pipeline(tmp_path / "trained" / "pytorch_lora_weights.safetensors")
    convert(tmp_path / "trained", made.folder, tmp_path / "plain")
    merge(made.folder, tmp_path / "trained", tmp_path / "merged")
    with pytest.raises(TargetError, match="would count twice"):
        merge(tmp_path / "model" / "unet", tmp_path / "trained", tmp_path / "wrong")
    again = export(tmp_path / "plain", "diffusers", tmp_path / "again", component="unet")
    exec(again.load, {"unet": original})
    with torch.no_grad():
        assert near(original(*inputs).sample, expected)
        assert near(UNet2DConditionModel.from_pretrained(tmp_path / "merged").eval()(*inputs).sample, expected)


def _as_pipeline(path: Path) -> None:
    """As StableDiffusionPipeline.save_lora_weights writes it: the component before every tensor and setting."""
    from diffusers import StableDiffusionPipeline
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    path.unlink()
    StableDiffusionPipeline.save_lora_weights(path.parent, unet_lora_layers=tensors, unet_lora_adapter_metadata=config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora'"),
        ({"lora_parameters": None}, "lora_parameters"),
        ({"lora_parameters": {"rank": 3}}, "scale"),
        ({"lora_parameters": {"rank": 4, "scale": 1.0}}, "rank"),
        (None, "adapter_config.json is missing"),
    ],
)
def test_a_config_of_mlx_that_does_not_fit_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    folder = start(tmp_path)
    exported = export(folder, "mlx", tmp_path / "out").folder
    path = exported / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage})) if damage else path.unlink()
    with pytest.raises(AiloraError, match=message):
        convert(exported, folder, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize("missing", ["adapter_config.json", "config.json"])
def test_torchtune_s_file_alone_is_not_enough(missing: str, tmp_path: Path) -> None:
    folder = start(tmp_path)
    exported = export(folder, "torchtune", tmp_path / "out").folder
    (exported / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 3}))
    (exported / "config.json").write_bytes((folder / "config.json").read_bytes())
    (exported / missing).unlink()
    with pytest.raises(CheckpointError, match=f"{missing} missing beside it"):
        convert(exported, folder, tmp_path / "plain")


def test_diffusers_weights_without_their_config_are_refused(tmp_path: Path) -> None:
    unet(tmp_path)
    made = initialize(tmp_path / "model", 3, subfolder="unet", output=tmp_path / "init")
    path = export(made.folder, "diffusers", tmp_path / "out").folder / "pytorch_lora_weights.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match="alpha is not known"):
        convert(path.parent, made.folder, tmp_path / "plain")


def test_the_untrained_start_comes_back_as_no_change(tmp_path: Path) -> None:
    """Of every trainer of which one file is enough; the result of `export` beside it disturbs nothing."""
    folder = start(tmp_path)
    exported = export(folder, "mlx", tmp_path / "out").folder
    assert (exported / RESULT).is_file()
    assert not any(module.changed for module in convert(exported, folder, tmp_path / "plain").modules)


@pytest.mark.parametrize("lost", [False, True])
def test_ranks_that_the_export_made_one_come_back(lost: bool, tmp_path: Path) -> None:
    """What was filled up gets no gradient; a part that was not and is zero now was lost, here as elsewhere."""
    ranks = {"format": "ailora-tools ranks", "version": 1, "rank": 3, "alpha_pattern": {}}
    (tmp_path / "ranks.json").write_text(json.dumps({**ranks, "rank_pattern": {"model.layers.0.self_attn.q_proj": 5}}))
    start(tmp_path)
    folder = initialize(tmp_path / "model", ranks=tmp_path / "ranks.json", output=tmp_path / "uneven").folder
    export(folder, "mlx", tmp_path / "trained")
    path = tmp_path / "trained" / "adapters.safetensors"
    trained = {key: value + 0.1 * torch.randn_like(value) * (value != 0) for key, value in load_file(path).items()}
    if lost:
        trained["model.layers.1.self_attn.v_proj.lora_b"][:2] = 0
    save_file(trained, path, {"format": "mlx"})
    if lost:
        with pytest.raises(TargetError, match="2 of 3 columns of B"):
            convert(tmp_path / "trained", folder, tmp_path / "plain")
        return
    done = convert(tmp_path / "trained", folder, tmp_path / "plain", keep_ranks=True)
    assert {module.rank for module in done.modules} == {10, 6}
    model, _ = load_mlx(str(folder), adapter_path=str(tmp_path / "trained"))
    original = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    expected = torch.tensor(model(mx.array(IDS.numpy())).tolist())
    assert near(logits(PeftModel.from_pretrained(original, done.folder)), expected)


def test_a_larger_rank_that_was_trained_is_of_another_start(tmp_path: Path) -> None:
    folder = start(tmp_path)
    export(initialize(tmp_path / "model", 4, output=tmp_path / "other").folder, "mlx", tmp_path / "trained")
    with pytest.raises(TargetError, match="and rank 4, at the start"):
        convert(tmp_path / "trained", folder, tmp_path / "plain")


def test_the_view_reads_as_a_folder_and_names_the_files_that_are_there(tmp_path: Path) -> None:
    exported = export(start(tmp_path), "mlx", tmp_path / "out").folder
    files = as_peft(LocalFiles(exported))
    held = [CARD, "adapter_config.json", "adapter_model.safetensors", RESULT, "lora_config.yaml"]
    assert files.names() == held
    size = files.size("adapter_model.safetensors")
    assert len(files.read("adapter_model.safetensors", 3, size)) == size - 3
    with pytest.raises(CheckpointError, match=r"adapters.safetensors: ended at byte"):
        files.read("adapter_model.safetensors", 0, size + 1)
    assert files.local_path("adapter_model.safetensors") == exported / "adapters.safetensors"
    assert as_peft(LocalFiles(tmp_path / "init" / "ailora_init")).names() == [
        CARD,
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
