"""`extract`: the LoRA between two models gives the second one on the first, and says what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import ALL, near
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build, output
from kit.few_bits import FORMATS
from kit.hub_server import HubServer, Repo
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ailora_tools import extract
from ailora_tools.adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, tensor_names
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import OptionError, TargetError
from ailora_tools.extraction.pairs import every_role
from ailora_tools.targets.linear import spelled_out
from ailora_tools.verbs.extract import Extraction

Q0, V0, Q1 = (f"model.layers.{layer}.self_attn.{role}_proj" for layer, role in ((0, "q"), (0, "v"), (1, "q")))
FAMILIES = [
    "llama", "bert with a head", "gpt2", "phi3, grouped", "t5, heads narrower than the model", "vit", "whisper",
    "falcon, groups",
]  # fmt: skip


def low_rank(shape: tuple[int, ...], rank: int, seed: int, size: float = 0.05) -> Tensor:
    """float64, its singular values apart."""
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randn(side, rank, generator=generator, dtype=torch.float64) for side in shape)
    left, right = (torch.linalg.qr(side).Q for side in draw)
    return size * (left * torch.arange(rank, 0, -1)) @ right.T


def product(folder: Path, module: str) -> Tensor:
    A, B = (load_file(folder / ADAPTER_WEIGHTS)[name].double() for name in tensor_names(module))
    return B @ A


def tuned_by(base: Path, folder: Path, changes: dict[str, Tensor], dtype: torch.dtype | None = None) -> Path:
    """The same checkpoint with those changes, by name of a module or tensor, in one file."""
    tensors = load_file(base / "model.safetensors")
    for name, change in changes.items():
        key = name if name in tensors else f"{name}.weight"
        tensors[key] = (tensors[key].double() + change).to(tensors[key].dtype)
    kept = {name: value.to(dtype or value.dtype) for name, value in tensors.items()}
    config = json.loads((base / "config.json").read_text())
    return write_checkpoint(folder, kept, **config)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("extract") / "base", llama_tensors(dtype=torch.float32))


@pytest.mark.parametrize("name", FAMILIES)
def test_on_the_base_it_computes_the_fine_tune(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "base")
    planned = extract(tmp_path / "base", tmp_path / "base", tmp_path / "dry", dry_run=True).planned
    state = dict(model.named_parameters())
    for seed, module in enumerate(planned):
        W = state[f"{module}.weight"]
        W.data += low_rank(tuple(W.shape), 2, seed).to(W.dtype)
    model.save_pretrained(tmp_path / "tuned")
    made = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", rank=8)
    assert {module.rank for module in made.modules} == {2} and made.error < 1e-5
    loaded = type(model).from_pretrained(tmp_path / "base").eval()
    expected = output(model.eval(), ALL[name].inputs())
    assert not near(output(loaded, ALL[name].inputs()), expected, 1e-2), "the change is seen"
    adapted = PeftModel.from_pretrained(loaded, tmp_path / "lora").eval()
    assert near(output(adapted, ALL[name].inputs()), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_table_takes_for_every_linear_layer_is_what_the_class_has(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    assert every_role(checkpoint).roles == spelled_out(checkpoint, ("all-linear",)).roles


def test_a_change_of_rank_four_is_found_as_it_was_made(base: Path, tmp_path: Path) -> None:
    changes = {Q0: low_rank((48, 48), 4, 1), V0: low_rank((24, 48), 4, 2)}
    tuned = tuned_by(base, tmp_path / "tuned", changes)
    made = extract(base, tuned, tmp_path / "lora", rank=9)
    assert {module.module: module.rank for module in made.modules} == {Q0: 4, V0: 4}
    for module, change in changes.items():
        found = torch.linalg.svd(product(made.folder, module))
        exact = torch.linalg.svd(change)
        for one, other in ((found.U[:, :4], exact.U[:, :4]), (found.Vh[:4].T, exact.Vh[:4].T)):
            assert torch.linalg.matrix_norm(one @ one.T - other @ other.T) < 1e-5


@pytest.mark.parametrize("rank", [1, 2, 3, 7, 24])
def test_what_is_left_is_what_eckart_and_young_say(base: Path, rank: int, tmp_path: Path) -> None:
    change = torch.randn(24, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.01
    tuned = tuned_by(base, tmp_path / "tuned", {V0: change})
    (made,) = extract(base, tuned, tmp_path / "lora", rank=rank).modules
    exact = load_file(tuned / "model.safetensors")[f"{V0}.weight"].double()
    exact -= load_file(base / "model.safetensors")[f"{V0}.weight"].double()
    values = torch.linalg.svdvals(exact)
    best = float(values[rank:].norm() / values.norm())
    assert made.error == pytest.approx(best, abs=1e-6) and made.truncated == pytest.approx(best, abs=1e-6)
    left = torch.linalg.matrix_norm(exact - product(tmp_path / "lora", V0)) / torch.linalg.matrix_norm(exact)
    assert made.error == pytest.approx(float(left), rel=1e-5, abs=3e-8)
    assert made.energy == pytest.approx(1 - made.error**2)


def test_energy_gives_each_module_the_smallest_rank_that_holds_it(base: Path, tmp_path: Path) -> None:
    """Squares 16, 9, 4, 1 of 30, and 4, 1 of 5."""
    tuned = tuned_by(base, tmp_path / "tuned", {Q0: low_rank((48, 48), 4, 1), Q1: low_rank((48, 48), 2, 2)})
    for energy, ranks in ((0.5, [1, 1]), (0.81, [2, 2]), (0.95, [3, 2]), (1.0, [4, 2])):
        made = extract(base, tuned, tmp_path / "lora", energy=energy, overwrite=True)
        assert [module.rank for module in made.modules] == ranks
        assert all(module.energy >= energy - 1e-6 for module in made.modules)
    assert [one.rank for one in extract(base, tuned, tmp_path / "two", energy=0.95, rank=2).modules] == [2, 2]


def test_ranks_that_differ_are_in_the_patterns_of_peft(base: Path, tmp_path: Path) -> None:
    tuned = tuned_by(base, tmp_path / "tuned", {Q0: low_rank((48, 48), 4, 1), Q1: low_rank((48, 48), 2, 2)})
    ranks = {"format": "ailora-tools ranks", "version": 1, "rank": 8, "rank_pattern": {Q0: 3}, "alpha_pattern": {}}
    (tmp_path / "ranks.json").write_text(json.dumps(ranks))
    extract(base, tuned, tmp_path / "lora", ranks=tmp_path / "ranks.json")
    config = json.loads((tmp_path / "lora" / ADAPTER_CONFIG).read_text())
    by_module = {module: config["rank_pattern"].get(module, config["r"]) for module in config["target_modules"]}
    assert by_module == {Q0: 3, Q1: 2}
    alphas = {module: config["alpha_pattern"].get(module, config["lora_alpha"]) for module in by_module}
    assert alphas == by_module, "the scaling is 1"


def test_sharding_dtype_and_order_of_the_fine_tune_do_not_matter(base: Path, tmp_path: Path) -> None:
    change = {Q0: low_rank((48, 48), 4, 1)}
    plain = extract(base, tuned_by(base, tmp_path / "tuned", change), tmp_path / "lora", rank=4)
    tensors = {name: value.double() for name, value in load_file(tmp_path / "tuned" / "model.safetensors").items()}
    sharded = write_checkpoint(tmp_path / "sharded", tensors, shards=3)
    other = extract(base, sharded, tmp_path / "other", rank=4)
    assert near(product(other.folder, Q0), product(plain.folder, Q0), 1e-6)


def test_a_prefix_that_one_side_lacks_does_not_matter(tmp_path: Path) -> None:
    model = build("bert with a head")
    model.save_pretrained(tmp_path / "base")
    body: nn.Module = model.bert  # type: ignore[assignment]
    W = body.get_parameter("encoder.layer.1.attention.self.query.weight")
    W.data += low_rank(tuple(W.shape), 2, 1).float()
    body.save_pretrained(tmp_path / "tuned")
    made = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", rank=4)
    assert [module.module for module in made.modules] == ["bert.encoder.layer.1.attention.self.query"]
    assert {one.why for one in made.beyond} == {"only in the base"}, "the head"


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_few_bits_count_as_the_numbers_that_they_stand_for(side: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = llama_tensors(layers=1, hidden=128, kv=64, dtype=torch.float32)
    held = FORMATS["NF4"](tensors[f"{Q0}.weight"])
    few = {name: value for name, value in tensors.items() if name != f"{Q0}.weight"}
    few |= {f"{Q0}{end}": piece for end, piece in held.pieces.items()}
    config: dict[str, Any] = {"quantization_config": held.settings}
    quantised = write_checkpoint(tmp_path / "few", few, **config)
    plain = write_checkpoint(tmp_path / "plain", tensors)
    sides = (quantised, plain) if side == "base" else (plain, quantised)
    made = extract(*sides, tmp_path / "lora", rank=128)
    assert [module.module for module in made.modules] == [Q0]
    sign = 1 if side == "base" else -1
    expected = sign * (tensors[f"{Q0}.weight"].double() - held.expected.double())
    assert near(product(made.folder, Q0), expected, 1e-5)
    assert not made.beyond


def norms() -> dict[str, Tensor]:
    return {"model.norm.weight": torch.full((48,), 0.5, dtype=torch.float64)}


def test_nothing_that_changed_is_a_clear_word(base: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    with pytest.raises(TargetError, match="no LoRA to extract") as error:
        extract(base, base, tmp_path / "lora", rank=4)
    assert "10 matrices are those of" in error.value.problem and "all else" in error.value.problem
    assert tree(tmp_path) == before


def test_a_change_that_no_lora_holds_is_named(base: Path, tmp_path: Path) -> None:
    tuned = tuned_by(base, tmp_path / "norms", norms())
    with pytest.raises(TargetError, match=r"what changed is model\.norm\.weight"):
        extract(base, tuned, tmp_path / "lora", rank=4)
    tuned = tuned_by(base, tmp_path / "both", {**norms(), Q0: low_rank((48, 48), 4, 1)})
    made = extract(base, tuned, tmp_path / "lora", rank=4)
    assert [(one.tensor, one.why) for one in made.beyond] == [("model.norm.weight", "changed")]
    (weight,) = (load_file(base / "model.safetensors")["model.norm.weight"].double(),)
    assert made.beyond[0].change == pytest.approx(float(0.5 * 48**0.5 / weight.norm()), rel=1e-5)


def test_heads_and_vocabularies_that_one_side_alone_has_are_named(base: Path, tmp_path: Path) -> None:
    tensors = load_file(tuned_by(base, tmp_path / "tuned", {Q0: low_rank((48, 48), 4, 1)}) / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.cat([tensors["model.embed_tokens.weight"], torch.ones(3, 48)])
    tensors["score.weight"] = torch.ones(2, 48)
    made = extract(base, write_checkpoint(tmp_path / "more", tensors), tmp_path / "lora", rank=4)
    found = {one.tensor: one.why for one in made.beyond}
    assert found == {"model.embed_tokens.weight": "another shape", "score.weight": "only in the fine-tune"}


def test_a_model_saved_in_another_dtype_is_unchanged(base: Path, tmp_path: Path) -> None:
    tuned = tuned_by(base, tmp_path / "tuned", {Q0: low_rank((48, 48), 4, 1)}, torch.bfloat16)
    made = extract(base, tuned, tmp_path / "lora", rank=4)
    assert [module.module for module in made.modules] == [Q0] and len(made.rounded) == 9
    assert not made.unchanged and not made.beyond
    with pytest.raises(TargetError, match="but for the rounding of its dtype"):
        extract(base, tuned_by(base, tmp_path / "same", {}, torch.bfloat16), tmp_path / "none", rank=4)


@pytest.mark.parametrize("size", [0.1, 3e-4])
def test_how_much_of_a_change_is_rounding_is_told(base: Path, size: float, tmp_path: Path) -> None:
    """A change of the size of bfloat16's units is mostly rounding, and of a large one little is."""
    coarse = tuned_by(base, tmp_path / "coarse", {}, torch.bfloat16)
    exact = low_rank((48, 48), 4, 1, size)
    (made,) = extract(coarse, tuned_by(coarse, tmp_path / "tuned", {Q0: exact}), tmp_path / "lora", rank=16).modules
    W = load_file(coarse / "model.safetensors")[f"{Q0}.weight"].double() + exact
    noise = float((W.bfloat16().double() - W).square().sum() / exact.square().sum())
    assert made.rounded_to == "bfloat16" and made.rank == 16
    if size == 0.1:
        assert made.rounding == pytest.approx(noise, rel=0.3) and made.rounding < 1e-3 and made.above_rounding == 4
    else:
        assert made.rounding > noise > 0.5 and made.above_rounding < 4


def test_roles_and_layers_choose_and_the_rest_is_not_looked_at(base: Path, tmp_path: Path) -> None:
    tuned = tuned_by(base, tmp_path / "tuned", {Q0: low_rank((48, 48), 4, 1), Q1: low_rank((48, 48), 4, 2), **norms()})
    made = extract(base, tuned, tmp_path / "lora", rank=4, roles=("q", "v"), layers="1")
    assert [module.module for module in made.modules] == [Q1]
    assert not made.compared and not made.beyond


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_error_is_that_of_the_factors_as_they_are_stored(base: Path, dtype: str, tmp_path: Path) -> None:
    change = low_rank((48, 48), 4, 1)
    tuned = tuned_by(base, tmp_path / "tuned", {Q0: change})
    (made,) = extract(base, tuned, tmp_path / "lora", rank=4, dtype=dtype).modules
    left = float((change - product(tmp_path / "lora", Q0)).norm() / change.norm())
    assert made.error == pytest.approx(left, rel=0.05, abs=1e-6)
    assert made.error < {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-3}[dtype]


def test_the_same_bytes_come_out_however_many_are_worked_on(base: Path, tmp_path: Path) -> None:
    tuned = tuned_by(base, tmp_path / "tuned", {Q0: low_rank((48, 48), 4, 1), V0: low_rank((24, 48), 3, 2)})
    extract(base, tuned, tmp_path / "one", rank=4, memory="100MB")
    torch.set_num_threads(2)
    extract(base, tuned, tmp_path / "two", rank=4)
    torch.set_num_threads(1)
    one, two = ((tmp_path / name / ADAPTER_WEIGHTS).read_bytes() for name in ("one", "two"))
    assert one == two


def test_it_reads_ranges_of_both_from_the_hub(base: Path, hub: HubServer, tmp_path: Path) -> None:
    tuned = tuned_by(base, tmp_path / "tuned", {Q0: low_rank((48, 48), 4, 1)})
    hub.repos["org/base"] = Repo(files=tree(base))
    hub.repos["org/tuned"] = Repo(files=tree(tuned))
    made = extract("org/base", "org/tuned", tmp_path / "lora", rank=4)
    here = extract(base, tuned, tmp_path / "here", rank=4)
    assert (made.folder / ADAPTER_WEIGHTS).read_bytes() == (here.folder / ADAPTER_WEIGHTS).read_bytes()
    config = json.loads((made.folder / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == "org/base" and config["revision"]


def test_an_adapter_and_another_model_are_refused(base: Path, tmp_path: Path) -> None:
    made: Extraction = extract(
        base, tuned_by(base, tmp_path / "tuned", {Q0: low_rank((48, 48), 4, 1)}), tmp_path / "lora", rank=4
    )
    with pytest.raises(TargetError, match="is an adapter, not a model"):
        extract(base, made.folder, tmp_path / "no", rank=4)
    other = write_checkpoint(tmp_path / "other", llama_tensors(hidden=64, dtype=torch.float32))
    with pytest.raises(TargetError, match="not a fine-tune"):
        extract(base, other, tmp_path / "no", rank=4)


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 49}, {"energy": 0.0}, {"energy": 1.1}, {"dtype": "int8"}])
def test_options_out_of_range_are_refused(base: Path, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        extract(base, base, tmp_path / "lora", **options)
    assert not (tmp_path / "lora").exists()
