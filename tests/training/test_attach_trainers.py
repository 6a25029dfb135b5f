"""attach in real trainers: Trainer with resume, TRL's DPO and GRPO with the reference they make themselves, FSDP2."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from kit.adapters import near
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from ailora_tools import attach, check_start, convert, initialize

WORDS = ["<pad>", "<unk>", "<s>", "</s>", *["how", "many", "are", "and", "no", "yes", "?", "."], *map(str, range(40))]
IDS = torch.randint(4, len(WORDS), (16, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A Llama in which attention matters, and its start without a base."""
    root = tmp_path_factory.mktemp("trainers")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=len(WORDS), pad_token_id=0, bos_token_id=2, eos_token_id=3, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "source")
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made = initialize(root / "source", 4, no_base=True, output=root / "start")
    return SimpleNamespace(source=root / "source", start=made.folder, adapter=made.adapter, tokens=tokens)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def original(at: SimpleNamespace) -> nn.Module:
    return LlamaForCausalLM.from_pretrained(at.source, dtype=torch.float32).eval()


def attached(at: SimpleNamespace, adapter: Path | None = None) -> PeftModel:
    model = PeftModel.from_pretrained(original(at), adapter or at.adapter, is_trainable=True)
    attach(model, at.adapter)
    check_start(model, at.adapter, trained=adapter is not None)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=IDS[:4]).logits.double()


def require_right(model: PeftModel, trained: Path, at: SimpleNamespace, out: Path) -> None:
    """The trained model, an adapter loaded anew, and the plain LoRA say the same, and not what the original does."""
    expected = logits(model)
    assert not near(expected, logits(original(at)), 1e-2)
    assert near(logits(attached(at, trained)), expected, 3e-6)
    convert(trained, at.start, out)
    assert near(logits(PeftModel.from_pretrained(original(at), out)), expected)


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "lr_scheduler_type": "constant", "bf16": False, **more,
    }  # fmt: skip


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_trainer_goes_on_after_a_resume_as_if_it_had_not_stopped(at: SimpleNamespace, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"input_ids": IDS.tolist(), "labels": IDS.tolist()})

    def run(resume: Path | None) -> tuple[PeftModel, list[float]]:
        set_seed(0)
        model = attached(at)
        settings = TrainingArguments(
            **options(
                tmp_path / "run",
                max_steps=4,
                save_steps=2,
                eval_strategy="steps",
                eval_steps=2,
                load_best_model_at_end=True,
                gradient_checkpointing=True,
            )
        )
        trainer = Trainer(model=model, args=settings, train_dataset=rows, eval_dataset=rows.select(range(4)))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return model, losses(trainer)

    whole, told = run(None)
    resumed, again = run(tmp_path / "run" / "checkpoint-2")
    assert again == pytest.approx(told, rel=1e-5)
    assert near(logits(resumed), logits(whole), 1e-5)
    require_right(resumed, tmp_path / "run" / "checkpoint-4", at, tmp_path / "plain")


@pytest.mark.slow
def test_the_reference_that_dpo_copies_is_the_original(at: SimpleNamespace, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": f"how many are {n} and {n} ?", "chosen": f" {2 * n}", "rejected": " no"} for n in range(16)]
    model = attached(at)
    trainer = DPOTrainer(
        model=model, args=DPOConfig(**options(tmp_path / "run", max_steps=2, save_strategy="no")),
        train_dataset=Dataset.from_list(rows), processing_class=at.tokens,
    )  # fmt: skip
    trainer.train()
    assert "ref" in model.peft_config
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    model.set_adapter("ref")
    assert torch.equal(logits(model), logits(original(at)))
    model.set_adapter("default")
    trainer.save_model(str(tmp_path / "trained"))
    require_right(model, tmp_path / "trained", at, tmp_path / "plain")


@pytest.mark.slow
def test_grpo_is_held_to_the_original(at: SimpleNamespace, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    model = attached(at)
    settings = GRPOConfig(
        **options(
            tmp_path / "run", max_steps=3, save_strategy="no", num_generations=4, max_completion_length=6, beta=0.5
        )
    )
    trainer = GRPOTrainer(
        model=model, args=settings, reward_funcs=lambda completions, **_: [float(len(one)) for one in completions],
        train_dataset=Dataset.from_list([{"prompt": f"how many are {n} and {n} ?"} for n in range(8)]),
        processing_class=at.tokens,
    )  # fmt: skip
    trainer.train()
    told = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert told[0] == pytest.approx(0, abs=1e-6) and told[-1] > 1e-5
    trainer.save_model(str(tmp_path / "trained"))
    require_right(model, tmp_path / "trained", at, tmp_path / "plain")
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(original(at)))


def test_fsdp2_shards_an_attached_model(at: SimpleNamespace, tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        found = []
        for shards in (False, True):
            model = attached(at)
            if shards:
                mesh = init_device_mesh("cpu", (1,))
                for layer in model.base_model.model.model.layers:
                    fully_shard(layer, mesh=mesh)
                fully_shard(model, mesh=mesh)
            optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1e-2)
            told = []
            for _ in range(3):
                loss = model(input_ids=IDS, labels=IDS).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                told.append(float(loss))
            found.append(told)
        assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0][2] < found[0][0]
    finally:
        dist.destroy_process_group()
