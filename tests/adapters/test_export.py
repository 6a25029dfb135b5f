"""`export`, loaded by the libraries it is for: torchtune, mlx-lm, diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as mnn
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from kit.adapters import near
from kit.checkpoints import tree
from kit.families import FAMILIES, build, output
from mlx_lm.tuner.utils import load_adapters
from peft import PeftModel
from safetensors.torch import load_file

from ailora_tools import export, initialize
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.adapters.trainers import peft_rows
from ailora_tools.errors import AiloraError, OutputError, TargetError
from ailora_tools.output.names import CARD, RESULT


def start(name: str, folder: Path, **options: object) -> Path:
    build(name).save_pretrained(folder / "model")
    return initialize(folder / "model", output=folder / "init", **{"rank": 3, **options}).folder  # type: ignore[arg-type]


def test_torchtune_reads_it_back_as_ours(tmp_path: Path) -> None:
    folder = start("llama", tmp_path)
    before = tree(folder)
    done = export(folder, "torchtune", tmp_path / "out")
    assert {*done.files, RESULT, CARD} == {path.name for path in done.folder.iterdir()} and tree(folder) == before
    config = json.loads((folder / "config.json").read_text())
    sizes = [config[key] for key in ("num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")]
    script = Path(__file__).parents[1] / "kit" / "torchtune_export.py"
    arguments = [done.folder, folder / "ailora_init", *map(str, sizes)]
    ran = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0 and "proven" in ran.stdout, ran.stderr


def test_torchtune_keeps_rows_of_qwen_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    folder = start("qwen2 with biases", tmp_path / "qwen")
    done = export(folder, "torchtune", tmp_path / "out")
    state = torch.load(done.folder / "adapter_model.pt", weights_only=True)
    for key, value in load_file(folder / "ailora_init" / ADAPTER_WEIGHTS).items():
        name = key.removeprefix("base_model.model.model.").replace("self_attn", "attn")
        assert torch.equal(state[name.replace("lora_A", "lora_a").replace("lora_B", "lora_b")], value)
    other = start("bert with a head", tmp_path / "bert")
    with pytest.raises(TargetError, match="row order is known here for"):
        export(other, "torchtune", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_torchtune_takes_a_whole_mlp_and_what_it_saves_is_read_back(tmp_path: Path) -> None:
    folder = start("llama", tmp_path, method="pissa", roles=("q", "k", "v", "o", "gate", "up", "down"))
    done = export(folder, "torchtune", tmp_path / "out")
    settings = json.loads((done.folder / "torchtune_model.json").read_text())["model"]
    assert settings["apply_lora_to_mlp"] and len(settings["lora_attn_modules"]) == 4
    config = json.loads((folder / "config.json").read_text())
    rows = peft_rows(torch.load(done.folder / "adapter_model.pt", weights_only=True), config, "it")
    ours = load_file(folder / "ailora_init" / ADAPTER_WEIGHTS)
    assert ours.keys() == {f"base_model.model.{name}.lora_{side}.weight" for name in rows for side in "AB"}
    for name, pair in rows.items():
        assert all(torch.equal(pair[side], ours[f"base_model.model.{name}.lora_{side}.weight"]) for side in "AB")
    half = start("llama", tmp_path / "half", method="pissa", roles=("q", "gate"))
    with pytest.raises(TargetError, match="all of an MLP or nothing"):
        export(half, "torchtune", tmp_path / "no")


class Attention(mnn.Module):
    """Two layers of a decoder as mlx-lm names them, projections only."""

    def __init__(self, weights: dict[str, torch.Tensor], prefix: str) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj"):
            rows, columns = weights[f"{prefix}.{name}.weight"].shape
            layer = mnn.Linear(columns, rows, bias=False)
            layer.weight = mx.array(weights[f"{prefix}.{name}.weight"].numpy())
            setattr(self, name, layer)


class Layer(mnn.Module):
    def __init__(self, weights: dict[str, torch.Tensor], number: int) -> None:
        super().__init__()
        self.self_attn = Attention(weights, f"model.layers.{number}.self_attn")


class Body(mnn.Module):
    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.layers = [Layer(weights, number) for number in range(2)]


class Model(mnn.Module):
    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model = Body(weights)

    @property
    def layers(self) -> list[Layer]:
        return self.model.layers  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"alpha": 7}, {"layers": "1"}])
def test_mlx_lm_computes_the_original_with_it(options: dict[str, object], tmp_path: Path) -> None:
    folder = start("llama", tmp_path, **options)
    original, residual = (load_file(place / "model.safetensors") for place in (tmp_path / "model", folder))
    done = export(folder / "ailora_init", "mlx", tmp_path / "out")
    model = load_adapters(Model(residual), str(done.folder))
    x = np.random.default_rng(0).standard_normal((4, residual["model.layers.0.self_attn.q_proj.weight"].shape[1]))
    for number, layer in enumerate(model.layers):
        for name in ("q_proj", "k_proj", "v_proj"):
            found = np.array(layer.self_attn[name](mx.array(x.astype(np.float32))))
            wanted = x @ original[f"model.layers.{number}.self_attn.{name}.weight"].double().numpy().T
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
            touched = name != "k_proj" and (number == 1 or options.get("layers") != "1")
            assert ("lora_a" in layer.self_attn[name]) == touched


def test_diffusers_computes_the_original_with_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), cross_attention_dim=24, attention_head_dim=8, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    inputs = (torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 24))
    unet.save_pretrained(tmp_path / "model" / "unet")
    made = initialize(tmp_path / "model", 3, subfolder="unet", alpha=5, output=tmp_path / "init")
    with pytest.raises(TargetError, match="--component unet"):
        _nameless(made.adapter, tmp_path)
    done = export(made.folder, "diffusers", tmp_path / "out", component="unet")
    base = UNet2DConditionModel.from_pretrained(made.folder).eval()
    with torch.no_grad():
        expected = unet(*inputs).sample
        assert not torch.allclose(base(*inputs).sample, expected, rtol=1e-3)
        base.load_lora_adapter(str(done.folder), prefix="unet", weight_name="pytorch_lora_weights.safetensors")
        assert near(base(*inputs).sample, expected)


def _nameless(adapter: Path, tmp_path: Path) -> None:
    """An adapter away from its manifest does not say to which component it belongs."""
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in adapter.iterdir():
        (alone / path.name).write_bytes(path.read_bytes())
    export(alone, "diffusers", tmp_path / "out")


def test_a_start_on_the_untouched_original_is_refused(tmp_path: Path) -> None:
    """No other trainer has the frozen adapter that takes out again what it adds; a LoRA with B = 0 needs none."""
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "without")
    for place in (made.folder, made.adapter):
        with pytest.raises(TargetError, match="counts twice unless it is taken out again: mlx has no place"):
            export(place, "mlx", tmp_path / "out")
    plain = initialize(tmp_path / "model", 2, method="lora", output=tmp_path / "plain")
    assert export(plain.folder, "mlx", tmp_path / "out").modules == 4


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    folder = start("llama", tmp_path)
    config = json.loads((folder / "ailora_init" / "adapter_config.json").read_text())
    (folder / "ailora_init" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(TargetError, match="has no lora_magnitude_vector"):
        export(folder, "mlx", tmp_path / "out")
    (folder / "ailora_init" / "adapter_config.json").write_text(json.dumps(config))
    export(folder, "mlx", tmp_path / "out")
    with pytest.raises(OutputError, match="already exists"):
        export(folder, "mlx", tmp_path / "out")
    with pytest.raises(AiloraError):
        export(tmp_path / "model", "mlx", tmp_path / "other")
    assert export(folder, "mlx", tmp_path / "out", overwrite=True).modules == 4


def test_the_command(tmp_path: Path) -> None:
    folder = start("llama", tmp_path)
    command = [sys.executable, "-m", "ailora_tools", "export", str(folder), "--to", "mlx", "-o", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and "4 modules for mlx" in ran.stdout
    loaded = PeftModel.from_pretrained(type(build("llama")).from_pretrained(folder), folder / "ailora_init").eval()
    assert near(output(loaded, FAMILIES["llama"].inputs()), output(build("llama"), FAMILIES["llama"].inputs()))
