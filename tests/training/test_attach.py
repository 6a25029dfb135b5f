"""attach: the start taken out of its adapter, in every state that PEFT and the trainers bring a model into."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit.adapters import ALL, load_with_offset, near, train
from kit.families import build, output
from kit.real_models import ROOT
from peft import LoraConfig, PeftModel
from peft.tuners.lora.awq import AwqLoraLinear
from peft.tuners.lora.gptq import GPTQLoraLinear
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

from ailora_tools import attach, check_start, convert, initialize, lr_groups, merge, residualize
from ailora_tools.errors import TargetError

MODULES = 4  # W^Q and W^V in two layers


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A Llama, its start without a base, an adapter trained from it by `attach`, and that as a plain LoRA."""
    root = tmp_path_factory.mktemp("attach")
    build("llama").save_pretrained(root / "source")
    start = initialize(root / "source", 3, no_base=True, output=root / "start")
    initialize(root / "source", 3, output=root / "with-base")
    model = attached(root / "source", start.adapter)
    train(model, "llama")
    model.save_pretrained(root / "trained")
    convert(root / "trained", start.folder, root / "plain")
    original = llama(root / "source")
    return SimpleNamespace(
        root=root, source=root / "source", start=start.folder, adapter=start.adapter, trained=root / "trained",
        plain=root / "plain", before=put_out(original), after=put_out(model),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama(folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()


def attached(source: Path, adapter: Path, start: Path | None = None, **options: object) -> PeftModel:
    """`adapter` on the original, with the start of the folder `start` attached: by default its own."""
    model = PeftModel.from_pretrained(llama(source), adapter, is_trainable=True, **options).eval()
    assert attach(model, start or adapter) == MODULES
    return model


def put_out(model: nn.Module) -> Tensor:
    return output(model, ALL["llama"].inputs())


def four_bits(dtype: torch.dtype) -> dict[str, object]:
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": bits}


EIGHT = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
LOW = {"autocast_adapter_dtype": False}
WIDE, HALF = torch.float32, torch.bfloat16
# dtype of the base, how it is loaded, how the adapter is, and whether bfloat16 autocast is on
DTYPES: dict[str, tuple[torch.dtype, dict[str, object], dict[str, object], bool]] = {
    "float32": (WIDE, {}, {}, False),
    "bfloat16": (HALF, {}, {}, False),
    "bfloat16, the adapter too": (HALF, {}, LOW, False),
    "float16, the adapter too": (torch.float16, {}, LOW, False),
    "float32, autocast": (WIDE, {}, {}, True),
    "bfloat16, autocast": (HALF, {}, {}, True),
    "NF4, float32": (WIDE, four_bits(WIDE), {}, False),
    "NF4, bfloat16": (HALF, four_bits(HALF), {}, False),
    "NF4, bfloat16, autocast": (HALF, four_bits(HALF), {}, True),
    "INT8, bfloat16": (HALF, EIGHT, {}, False),
    "INT8, float32, autocast": (WIDE, EIGHT, {}, True),
}


@pytest.mark.parametrize("name", DTYPES)
def test_start_and_offset_cancel_to_the_bit(name: str, at: SimpleNamespace) -> None:
    dtype, base, adapter, autocast = DTYPES[name]
    model = PeftModel.from_pretrained(llama(at.source, dtype, **base), at.adapter, **adapter).train()
    assert attach(model, at.adapter) == check_start(model, at.adapter) == MODULES
    with torch.autocast("cpu", HALF, enabled=autocast):
        found = put_out(model)
        with model.disable_adapter():
            assert torch.equal(found, put_out(model))


@pytest.mark.parametrize("name", ["gpt2", "bert with a head", "t5, heads narrower than the model", "falcon, groups"])
@pytest.mark.parametrize("cast", [False, True])
def test_every_kind_of_layer_and_a_cast_after_it(name: str, cast: bool, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "out")
    adapted = PeftModel.from_pretrained(model, made.adapter, is_trainable=True).eval()
    attach(adapted, made.adapter)
    adapted = adapted.bfloat16().float() if cast else adapted
    with adapted.disable_adapter():
        expected = output(adapted, ALL[name].inputs())
    assert torch.equal(output(adapted, ALL[name].inputs()), expected)
    adapted = adapted if cast else adapted.merge_and_unload()
    assert torch.equal(output(adapted, ALL[name].inputs()), expected)


@pytest.mark.parametrize("kind", [GPTQLoraLinear, AwqLoraLinear])
def test_layers_of_quantised_models_that_need_a_gpu(kind: type[nn.Module], at: SimpleNamespace) -> None:
    """PEFT's own layer over a linear one that stands for the quantised."""
    factors = load_file(at.trained / "adapter_model.safetensors")
    config = LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "v_proj"])
    model = llama(at.source)
    for block in model.model.layers:
        for name in ("q_proj", "v_proj"):
            held = getattr(block.self_attn, name)
            setattr(block.self_attn, name, kind(held, "default", config=config, r=3, lora_alpha=3))
    ours = {f"base_model.model.{name.replace('.default', '')}": value for name, value in model.named_parameters()}
    with torch.no_grad():
        for name, value in factors.items():
            ours[name].copy_(value)
    assert attach(model, at.adapter) == MODULES
    assert near(put_out(model), at.after, 2e-6)


def test_it_compiles_to_one_graph(at: SimpleNamespace) -> None:
    model = attached(at.source, at.trained, at.adapter)
    assert near(put_out(torch.compile(model, backend="eager", fullgraph=True)), at.after, 2e-6)


def with_dropout(at: SimpleNamespace) -> PeftModel:
    config = LoraConfig.from_pretrained(at.adapter)
    config.lora_dropout = 0.5
    return attached(at.source, at.adapter, config=config).train()


def test_dropout_takes_nothing_of_the_original_away(at: SimpleNamespace) -> None:
    assert torch.equal(put_out(with_dropout(at)), at.before)


def switched(at: SimpleNamespace, state: Callable[[PeftModel], object]) -> PeftModel:
    model = attached(at.source, at.trained, at.adapter)
    state(model)
    return model.eval()


def copied_reference(model: PeftModel) -> None:
    """As TRL makes it."""
    model.add_adapter("ref", model.peft_config["default"])
    for name, value in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(value.data)
    model.set_adapter("ref")


def trained_on(model: PeftModel) -> None:
    """The copy for reference stands while the other one is trained."""
    copied_reference(model)
    put_out(model)
    model.set_adapter("default")
    train(model, "llama", steps=2)
    model.set_adapter("ref")


def merged_and_back(model: PeftModel) -> None:
    model.merge_adapter()
    model.unmerge_adapter()


def halved(model: PeftModel) -> None:
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.0)


def with_a_fresh_one(model: PeftModel) -> None:
    model.add_adapter("fresh", LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    model.base_model.set_adapter(["default", "fresh"])


STATES: dict[str, tuple[Callable[[PeftModel], object], str]] = {
    "loaded": (lambda model: None, "after"),
    "set_adapter": (lambda model: model.set_adapter("default"), "after"),
    "a reference that was copied": (copied_reference, "after"),
    "a reference, and the other trained on": (trained_on, "after"),
    "beside a fresh adapter": (with_a_fresh_one, "after"),
    "merged": (lambda model: model.merge_adapter(), "after"),
    "merged safely": (lambda model: model.merge_adapter(safe_merge=True), "after"),
    "merged and back": (merged_and_back, "after"),
    "unmerged": (lambda model: model.base_model.disable_adapter_layers(), "before"),
    "scaled to nothing": (halved, "before"),
}


@pytest.mark.parametrize("name", STATES)
def test_every_state_computes_what_one_expects(name: str, at: SimpleNamespace) -> None:
    state, expected = STATES[name]
    assert near(put_out(switched(at, state)), getattr(at, expected), 2e-6)


def test_what_trainer_does_when_it_resumes(at: SimpleNamespace) -> None:
    model = attached(at.source, at.adapter)
    assert torch.equal(put_out(model), at.before)
    model.load_adapter(at.trained, "default", is_trainable=True)
    model.set_adapter("default")
    assert near(put_out(model), at.after, 2e-6)


def test_what_leaves_peft_is_the_trained_model_or_the_original(at: SimpleNamespace) -> None:
    assert near(put_out(attached(at.source, at.trained, at.adapter).merge_and_unload()), at.after, 2e-6)
    assert torch.equal(put_out(attached(at.source, at.trained, at.adapter).unload()), at.before)


def test_another_adapter_counts_without_the_start(at: SimpleNamespace) -> None:
    """The plain LoRA of `convert` says the same on the original; both at once double the change."""
    model = attached(at.source, at.trained, at.adapter)
    model.load_adapter(at.plain, "plain")
    model.set_adapter("plain")
    assert near(put_out(model), at.after)
    names = ["default", "plain", "__base__"]
    inputs = {key: value[:1].repeat(3, 1) for key, value in ALL["llama"].inputs().items()}
    rows = model(**inputs, adapter_names=names).logits
    for row, expected in zip(rows, (at.after, at.after, at.before), strict=True):
        assert near(row, expected.reshape(-1, *row.shape)[0])


def test_a_copy_of_the_model_stands_by_itself(at: SimpleNamespace) -> None:
    model = attached(at.source, at.trained, at.adapter)
    other = copy.deepcopy(model)
    del model
    assert near(put_out(other), at.after, 2e-6)
    copied_reference(other)
    assert near(put_out(other), at.after, 2e-6), "the copy recognises adapters of its own"


def test_gradient_checkpointing_gives_the_same_gradients(at: SimpleNamespace) -> None:
    found = []
    for on in (False, True):
        model = attached(at.source, at.trained, at.adapter).train()
        if on:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        with torch.enable_grad():
            model(**ALL["llama"].inputs()).logits.square().mean().backward()
        found.append([value.grad for name, value in model.named_parameters() if "lora_" in name])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert any(value.any() for value in found[0])


def test_what_was_trained_converts_and_merges(at: SimpleNamespace, tmp_path: Path) -> None:
    plain = PeftModel.from_pretrained(llama(at.source), at.plain).eval()
    assert not near(at.after, at.before, 1e-3), "training did something"
    assert near(put_out(plain), at.after)
    merge(at.source, at.plain, tmp_path / "merged")
    assert near(put_out(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()), at.after)
    resumed = attached(at.source, at.trained, at.adapter)
    assert near(put_out(resumed), at.after, 2e-6), "the adapter and the folder of the start are enough to go on"


def test_check_start_knows_it_before_and_after_training(at: SimpleNamespace) -> None:
    resumed = attached(at.source, at.trained, at.adapter)
    assert check_start(resumed, at.adapter, trained=True) == MODULES
    with pytest.raises(TargetError, match="differ from the file"):
        check_start(resumed, at.adapter)
    lost = PeftModel.from_pretrained(llama(at.source), at.trained, is_trainable=True)
    with pytest.raises(TargetError, match="the offset is not there or not active"):
        check_start(lost, at.adapter, trained=True)
    lost.load_adapter(at.start / "ailora_offset", adapter_name="offset")
    lost.base_model.set_adapter(["default", "offset"])
    assert check_start(lost, at.adapter, trained=True) == MODULES
    lost.set_adapter("default")  # as Trainer does when it resumes
    with pytest.raises(TargetError, match="the offset is not there or not active"):
        check_start(lost, at.adapter, trained=True)
    on_base = PeftModel.from_pretrained(llama(at.root / "with-base"), at.trained)
    assert check_start(on_base, at.root / "with-base/ailora_init", trained=True) == MODULES


def test_a_resumed_run_that_forgot_it_gets_no_optimiser(at: SimpleNamespace) -> None:
    lost = PeftModel.from_pretrained(llama(at.source), at.trained, is_trainable=True)
    with pytest.raises(TargetError, match=r"(?s)the offset is not there or not active.*Call `attach`"):
        lr_groups(lost, at.adapter, lr=1e-3)
    assert len(lr_groups(attached(at.source, at.trained, at.adapter), at.adapter, lr=1e-3)) == 2
    base = llama(at.source)
    residualize(base, at.adapter)
    assert len(lr_groups(PeftModel.from_pretrained(base, at.trained, is_trainable=True), at.adapter, lr=1e-3)) == 2
    bits = PeftModel.from_pretrained(llama(at.source, **four_bits(WIDE)), at.trained, is_trainable=True)
    with pytest.raises(TargetError, match="quantised weights"):
        lr_groups(bits, at.adapter, lr=1e-3)


def test_a_folder_with_a_base_may_be_attached_to_the_original(at: SimpleNamespace) -> None:
    adapter = at.root / "with-base" / "ailora_init"
    model = attached(at.source, adapter)
    assert torch.equal(put_out(model), at.before) and check_start(model, adapter) == MODULES
    assert attach(model, adapter) == MODULES, "twice is once"
    assert torch.equal(put_out(model), at.before)


def random_lora(at: SimpleNamespace) -> PeftModel:
    model = PeftModel.from_pretrained(llama(at.source), at.adapter)
    for name, value in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(value)
    return model


WRONG: dict[str, tuple[Callable[[SimpleNamespace], nn.Module], str]] = {
    "the residual": (
        lambda at: PeftModel.from_pretrained(llama(at.root / "with-base"), at.adapter), "neither the original nor",
    ),
    "the frozen adapter": (lambda at: load_with_offset(llama(at.source), at.start), "frozen adapter of the folder"),
    "a random adapter": (random_lora, "no adapter of the model comes from it"),
    "a plain LoRA": (lambda at: PeftModel.from_pretrained(llama(at.source), at.plain), "no adapter of the model"),
    "no adapter": (lambda at: llama(at.source), "the model has no LoRA on"),
    "merged": (lambda at: merged(at), "an adapter is merged into"),
}  # fmt: skip


def merged(at: SimpleNamespace) -> PeftModel:
    model = PeftModel.from_pretrained(llama(at.source), at.adapter)
    model.merge_adapter()
    return model


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_attached_is_told_and_left_alone(name: str, at: SimpleNamespace) -> None:
    load, text = WRONG[name]
    model = load(at)
    before = put_out(model.eval()), {type(module) for module in model.modules()}
    with pytest.raises(TargetError, match=text):
        attach(model, at.adapter)
    assert torch.equal(put_out(model), before[0]) and {type(module) for module in model.modules()} == before[1]


def test_other_factors_under_the_same_name_are_refused(at: SimpleNamespace, tmp_path: Path) -> None:
    random_lora(at).save_pretrained(tmp_path / "other")
    model = attached(at.source, at.adapter)
    model.load_adapter(tmp_path / "other", "default")
    with pytest.raises(TargetError, match=r"(?s)cannot be told.*under a name of their own"):
        put_out(model)


def test_transformers_own_loader_and_a_method_without_a_residual(at: SimpleNamespace, tmp_path: Path) -> None:
    model = llama(at.source)
    model.load_adapter(str(at.adapter), adapter_name="mine")
    assert attach(model, at.adapter) == MODULES and torch.equal(put_out(model), at.before)
    made = initialize(at.source, 3, method="lora", output=tmp_path / "out")
    plain = PeftModel.from_pretrained(llama(at.source), made.adapter)
    assert attach(plain, made.adapter) == 0 and torch.equal(put_out(plain), at.before)


@pytest.mark.parametrize("weights", [[0.5], [0.5, 0.5]])
def test_a_combination_of_adapters_is_refused(weights: list[float], at: SimpleNamespace) -> None:
    """Another share of B A less all of B0 A0 is no change of W."""
    model = attached(at.source, at.trained, at.adapter)
    copied_reference(model)
    names = ["default", "ref"][: len(weights)]
    model.add_weighted_adapter(names, weights, "mixed", combination_type="linear")
    model.set_adapter("mixed")
    with pytest.raises(TargetError, match=r"(?s)cannot be told.*by `convert` before"):
        put_out(model)


def test_an_adapter_that_moved_far_comes_from_the_start_by_the_user_s_word(at: SimpleNamespace) -> None:
    """Small factors are soon not like those at the start; the arithmetic is the same."""
    model = random_lora(at)
    assert attach(model, at.adapter, adapters=["default"]) == check_start(model, at.adapter, trained=True) == MODULES
    plain = random_lora(at)
    factors = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if "lora_" in name:
                value.copy_(factors[name])
    plain.load_adapter(at.start / "ailora_offset", "offset")
    plain.base_model.set_adapter(["default", "offset"])
    assert near(put_out(copy.deepcopy(model)), put_out(plain.eval()), 1e-5)
    with pytest.raises(TargetError, match="no adapter mine"):
        attach(model, at.adapter, adapters=["mine"])


def test_the_folder_of_init_is_as_good_as_the_adapter_in_it(at: SimpleNamespace) -> None:
    model = PeftModel.from_pretrained(llama(at.source), at.adapter, is_trainable=True)
    assert attach(model, at.start) == check_start(model, at.start) == MODULES
    assert len(lr_groups(model, at.start, lr=1e-3)) == 2


def test_the_frozen_adapter_beside_it_is_refused(at: SimpleNamespace) -> None:
    model = attached(at.source, at.adapter)
    model.load_adapter(at.start / "ailora_offset", "offset")
    model.base_model.set_adapter(["default", "offset"])
    with pytest.raises(TargetError, match="frozen adapter of the folder"):
        put_out(model)


def test_the_guide_has_the_table_of_the_docstring() -> None:
    rows = [line.strip() for line in (attach.__doc__ or "").splitlines() if line.strip().startswith("|")]
    guide = (ROOT / "examples/guide/training.md").read_text()
    assert len(rows) == 10 and "\n".join(rows) in guide
