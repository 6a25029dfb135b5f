"""Every method: its rule against its formula and against PEFT's own init, its folder in PEFT, its options."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.adapters import ALL, load_start, write_model
from kit.families import FAMILIES, build, output
from kit.peers import ON_ANY, PEERS
from kit.real_models import minilm
from kit.spectra import SPECTRA, matrix, worst_cosine
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, LlamaForCausalLM

from ailora_tools import convert, initialize, merge, residualize, verify
from ailora_tools.cli.group import main
from ailora_tools.errors import OptionError, TargetError
from ailora_tools.linalg.starts import STARTS, Start, _sines, find_start
from ailora_tools.methods import ATTENTION, METHODS, RULES, find_method
from ailora_tools.progress import Silent

SHAPES = [(40, 40), (64, 24), (24, 64)]
COMPOSED = ["q=principal,v=minor", "q=middle,k=qr,v=kaiming,o=minor-left", "v=random-orthonormal", "q=kaiming,v=minor"]


def start(rule: str, W: Tensor, rank: int = 4, seed: int = 0) -> Start:
    return STARTS[rule](W, rank, torch.Generator().manual_seed(seed))


def test_every_rule_of_the_table_has_its_function_and_every_method_known_rules() -> None:
    assert list(RULES) == list(STARTS)
    assert {rule for row in METHODS.values() for rule in (*row.rules.values(), row.every)} - {""} == set(RULES)
    for name, rule in RULES.items():
        assert start(name, matrix((20, 12), torch.linspace(2, 1, 12, dtype=torch.float64))).moved == rule.moved


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rule", RULES)
def test_what_is_moved_is_told_by_its_triplets(rule: str, spectrum: str, shape: tuple[int, int]) -> None:
    """A and B of the right shape, finite, the same again; U S Vh is B A with orthonormal U and V."""
    W = matrix(shape, SPECTRA[spectrum](min(shape)))
    found, again = start(rule, W), start(rule, W)
    assert found.A.shape == (4, shape[1]) and found.B.shape == (shape[0], 4)
    assert torch.equal(found.A, again.A) and torch.equal(found.B, again.B)
    assert torch.isfinite(found.A).all() and torch.isfinite(found.B).all()
    moved = found.B @ found.A
    if not found.moved:
        assert not moved.any()
        return
    size = float(moved.norm()) + 1e-12
    assert float(((found.U * found.S) @ found.Vh - moved).norm()) <= 1e-9 * size
    for side in (found.U, found.Vh.T):
        assert torch.allclose(side.T @ side, torch.eye(4, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 24])
def test_middle_is_the_middle_of_lapack(shape: tuple[int, int], rank: int) -> None:
    k = min(shape)
    W = matrix(shape, SPECTRA["condition 1e3"](k))
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    part = slice((k - rank) // 2, (k - rank) // 2 + rank)
    found = start("middle", W, rank)
    assert torch.allclose(found.S, S[part], rtol=1e-9)
    assert min(worst_cosine(found.U, U[:, part]), worst_cosine(found.Vh.T, Vh[part].T)) > 1 - 1e-8
    edges = [at for at in (part.start, part.stop) if 0 < at < k]
    gap = min((float((S[at - 1] - S[at]) / S[at - 1]) for at in edges), default=1.0)
    assert found.gap == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_qr_is_the_leading_part_of_lapack_s_qr(shape: tuple[int, int]) -> None:
    W = matrix(shape, SPECTRA["power 0.5"](min(shape)))
    Q, R = torch.linalg.qr(W)
    found = start("qr", W)
    assert torch.allclose(found.B, Q[:, :4], atol=1e-12) and torch.allclose(found.A, R[:4], atol=1e-12)
    # What was moved is all of the first columns: the residual has nothing left there.
    assert float((W - found.B @ found.A)[:, :4].norm()) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_nystrom_is_the_formula_and_clears_the_leading_rows_and_columns(shape: tuple[int, int]) -> None:
    W = matrix(shape, SPECTRA["power 0.5"](min(shape)))
    found = start("nystrom", W)
    expected = W[:, :4] @ torch.linalg.pinv(W[:4, :4]) @ W[:4]
    assert torch.allclose(found.B @ found.A, expected, rtol=1e-8, atol=1e-8 * float(expected.norm()))
    rest = W - found.B @ found.A
    assert float(rest[:4].norm() + rest[:, :4].norm()) < 1e-9 * float(expected.norm())


def test_nystrom_leaves_out_what_a_singular_block_lacks() -> None:
    W = matrix((30, 20), SPECTRA["power 0.5"](20))
    W[:4, 3] = W[:4, 2]
    W[3, :4] = W[2, :4]
    assert float(start("nystrom", W).S[-1]) < 1e-9 and torch.isfinite(start("nystrom", W).B).all()


def test_random_directions_have_the_size_of_an_average_component_and_a_seed() -> None:
    W = matrix((60, 40), SPECTRA["power 0.5"](40))
    found = start("random-orthonormal", W)
    assert torch.allclose(found.S, (W.norm() / 40**0.5).expand(4))
    other = start("random-orthonormal", W, seed=1)
    assert worst_cosine(found.U, other.U) < 0.9
    U = torch.linalg.svd(W, full_matrices=False).U
    assert worst_cosine(found.U, U[:, :4]) < 0.9 and worst_cosine(found.U, U[:, -4:]) < 0.9


@pytest.mark.parametrize("rank", [2, 4, 24])
@pytest.mark.parametrize("shape", SHAPES)
def test_sine_is_loram_s_algorithm(shape: tuple[int, int], rank: int) -> None:
    """Step by step as the paper writes it (arXiv 2507.06558, algorithm 1 and equation 12), from index 0; nu: mean of
    the squares."""
    W = matrix(shape, SPECTRA["power 0.5"](min(shape)))
    bases = []
    for m in shape:
        i, j = torch.meshgrid(torch.arange(m), torch.arange(rank), indexing="ij")
        bases.append((2 / (m + 1)) ** 0.5 * torch.sin((i + 1) * (j + 1) * torch.pi / (m + 1)).double())
    n, m = bases
    gain = math.log(rank, min(shape))
    beta = (gain * W.square().mean() / (n @ m.T).square().mean()) ** 0.25
    found = start("sine", W, rank)
    assert torch.allclose(found.B, beta * n, atol=1e-5) and torch.allclose(found.A, beta * m.T, atol=1e-5)
    assert float((found.B @ found.A).square().mean()) == pytest.approx(gain * float(W.square().mean()))


@pytest.mark.parametrize("size", [1, 7, 4096, 131_072])
def test_the_sines_are_orthonormal_at_any_size(size: int) -> None:
    found = _sines(size, min(size, 64))
    assert float((found.T @ found - torch.eye(found.shape[1], dtype=torch.float64)).abs().max()) < 1e-13


def test_a_rank_at_which_both_factors_are_zero_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    for options in ({"rank": 1, "method": "loram"}, {"rank": 1, "method": "q=principal,v=sine"}):
        with pytest.raises(OptionError, match=r"rule sine makes both factors of \S+ zero at rank 1; it takes 2"):
            initialize(tmp_path / "model", output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert start("sine", torch.ones(5, 1), 1).S.tolist() == [0.0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rule", "part"), [("principal-right", slice(4)), ("minor-right", slice(-4, None))])
def test_right_starts_are_the_rows_of_lapack_s_vh_and_move_nothing(
    rule: str, part: slice, shape: tuple[int, int]
) -> None:
    W = matrix(shape, SPECTRA["power 0.5"](min(shape)))
    Vh = torch.linalg.svd(W, full_matrices=False)[2]
    found = start(rule, W)
    assert torch.allclose(found.A @ found.A.T, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert worst_cosine(found.A.T, Vh[part].T) > 1 - 1e-8 and not found.B.any()


@pytest.mark.parametrize("scale", [1.0, 1e-24, 1e25])
@pytest.mark.parametrize("shape", SHAPES)
def test_minor_orthonormal_moves_the_minor_directions_without_their_values(
    shape: tuple[int, int], scale: float
) -> None:
    W = matrix(shape, SPECTRA["power 0.5"](min(shape))) * scale
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    found = find_start("minor-orthonormal", W, 4, torch.Generator())
    moved = U[:, -4:] @ Vh[-4:]
    assert float((found.B @ found.A - moved).norm()) < 1e-7 and torch.allclose(found.S, torch.ones_like(found.S))
    assert found.overlap == pytest.approx(float((W * moved).sum() / (moved * moved).sum()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rank", [0, 13])
def test_a_rank_that_does_not_fit_is_refused(rule: str, rank: int) -> None:
    if rule not in ("kaiming", "pooled"):  # which knows no limit; the plan refuses it for all
        with pytest.raises(OptionError, match="does not fit"):
            start(rule, torch.ones(20, 12), rank)


@pytest.mark.parametrize(("method", "alpha"), [*((method, 3) for method in PEERS), ("pissa", 6)])
@pytest.mark.parametrize("model", ["llama", "minilm"])
def test_our_start_is_peft_s_own(model: str, method: str, alpha: int, tmp_path: Path) -> None:
    """Up to the signs and rotations that leave B A or the span of B as it is; on random and on real weights."""
    if model == "llama":
        build("llama").save_pretrained(tmp_path / "model")
    else:
        minilm(tmp_path / "model")
    original = (LlamaForCausalLM if model == "llama" else AutoModel).from_pretrained(tmp_path / "model")
    names = ["q_proj", "v_proj"] if model == "llama" else ["query", "value"]
    weights = {name: value.clone() for name, value in original.state_dict().items()}
    config = LoraConfig(r=3, lora_alpha=alpha, target_modules=names, init_lora_weights=PEERS[method])
    theirs = get_peft_model(original, config).base_model.model
    result = initialize(tmp_path / "model", 3, alpha=alpha, method=method, output=tmp_path / "out")
    ours = load_file(result.adapter / "adapter_model.safetensors")
    base = load_file(tmp_path / "out" / "model.safetensors") if result.manifest.base else weights
    for record in result.manifest.modules:
        layer = theirs.get_submodule(record.module)
        A, B = (ours[f"base_model.model.{record.module}.lora_{side}.weight"] for side in "AB")
        A1, B1 = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        # PEFT's SVD is in float32, whose error a narrow gap at the cut magnifies.
        bound = 1e-6 / (record.gap or 1.0) * float(weights[record.tensor].norm())
        assert float((B @ A - B1 @ A1).norm()) < bound
        assert worst_cosine(torch.linalg.qr(B.double())[0], torch.linalg.qr(B1.double())[0]) > 1 - 1e-5
        assert float((base[record.tensor] - layer.base_layer.weight.detach()).norm()) < bound


@pytest.mark.parametrize("shape", SHAPES)
def test_kaiming_is_peft_s_distribution(shape: tuple[int, int]) -> None:
    """kaiming_uniform(a = sqrt 5) of an (r, n) matrix: uniform within 1 / sqrt(n)."""
    W = torch.zeros(shape)
    found = start("kaiming", W, 24)
    theirs = torch.empty(24, shape[1])
    nn.init.kaiming_uniform_(theirs, a=5**0.5)
    bound = shape[1] ** -0.5
    assert 0.9 * bound < float(found.A.abs().max()) <= bound and float(theirs.abs().max()) <= bound
    assert float(found.A.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not found.B.any() and torch.equal(start("kaiming", W, 24).A, found.A)
    assert not torch.equal(start("kaiming", W, 24, seed=1).A, found.A)


def test_olora_moves_the_same_part_whatever_the_scaling(tmp_path: Path) -> None:
    """PEFT's would subtract twice of it for alpha = 2 r."""
    build("llama").save_pretrained(tmp_path / "model")
    for alpha in (3, 6):
        initialize(tmp_path / "model", 3, alpha=alpha, method="olora", output=tmp_path / str(alpha))
    first, second = (load_file(tmp_path / alpha / "model.safetensors") for alpha in "36")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


OPTIONS: list[dict[str, object]] = [
    *({"method": name} for name in (*ON_ANY, *COMPOSED)),
    {"method": "olora", "alpha": 7},
    {"method": "nlora", "rslora": True},
    {"method": "mica", "alpha": 7},
    {"method": "middle", "roles": ATTENTION},
    {"dora": True},
    {"dora": True, "method": "lora"},
    {"dora": True, "method": "pissa", "alpha": 6, "adapter_dtype": "float32"},
    {"bias": "all"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_step_zero_is_the_original(name: str, options: dict[str, object], tmp_path: Path) -> None:
    model, original = write_model(name, tmp_path / "source")
    result = initialize(tmp_path / "source", 3, output=tmp_path / "out", **options)
    adapted = load_start(model, tmp_path / "out", tmp_path / "source")
    inputs = ALL[name].inputs()
    assert float((output(adapted, inputs) - original).norm() / original.norm()) <= 1e-5
    assert verify(tmp_path / "out").holds
    residual = find_method(str(options.get("method", "ailora")))[0].residual
    assert result.manifest.base == residual == (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("base_dtype", ["keep", "float32"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_role_that_moves_nothing_keeps_its_bytes(name: str, base_dtype: str, tmp_path: Path) -> None:
    model = build(name).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    made = initialize(
        tmp_path / "source", 3, method="q=kaiming,v=principal", base_dtype=base_dtype, output=tmp_path / "out"
    )
    assert verify(tmp_path / "out").holds
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("source", "out"))
    for record in made.manifest.modules:
        old, new = before[record.tensor].float(), after[record.tensor].float()
        lines = slice(None) if record.part is None else slice(*record.part.runs[0])
        same = torch.equal(old[:, lines], new[:, lines]) if name == "gpt2" else torch.equal(old, new)
        assert same == (record.role == "q")
        if name == "llama" and record.role == "q":
            assert after[record.tensor].dtype == torch.bfloat16 and record.base_sha256 == record.source_sha256


def test_mixed_methods_survive_an_interruption_and_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ailora_tools.output.init_folder import InitFolder

    model, original = write_model("llama", tmp_path / "source")
    stored: list[int] = []
    whole = InitFolder.store

    def fall(self: InitFolder, *rest: object) -> None:
        whole(self, *rest)
        stored.append(1)
        if len(stored) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(InitFolder, "store", fall)
    with pytest.raises(KeyboardInterrupt):
        initialize(tmp_path / "source", 3, method="q=minor-left,v=minor", output=tmp_path / "out")
    monkeypatch.setattr(InitFolder, "store", whole)
    initialize(tmp_path / "source", 3, method="q=minor-left,v=minor", output=tmp_path / "out", resume=True)
    assert verify(tmp_path / "out").holds
    adapted = load_start(model, tmp_path / "out", tmp_path / "source", is_trainable=True)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            value += 0.02 * ("lora_A" in name)
    adapted.save_pretrained(tmp_path / "trained")
    expected = output(adapted, FAMILIES["llama"].inputs())
    assert float((expected - original).norm()) > 1e-3
    plain = convert(tmp_path / "trained", tmp_path / "out", tmp_path / "plain").folder
    found = PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "source").eval(), plain)
    assert torch.allclose(output(found, FAMILIES["llama"].inputs()), expected, atol=1e-4)


@pytest.mark.parametrize(
    "text", ["q=principal,q=minor", "x=minor", "q=", "q=least", "=minor", "q=minor,,", "ailoro", "", "q"]
)
def test_a_composition_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        find_method(text)


def test_a_composition_names_its_own_roles(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, method="o=minor,k=principal", output=tmp_path / "out").manifest
    assert {(record.role, record.rule) for record in made.modules} == {("k", "principal"), ("o", "minor")}
    with pytest.raises(OptionError, match="says nothing about role k"):
        initialize(tmp_path / "model", 2, roles=("k",), output=tmp_path / "other")
    with pytest.raises(OptionError, match="its roles are q, v, those asked for q, k"):
        initialize(tmp_path / "model", 2, roles=("q", "k"), method="q=minor,v=minor", output=tmp_path / "other")


def test_the_readme_s_rules_for_all_roles_run_on_minilm(tmp_path: Path) -> None:
    minilm(tmp_path / "model")
    made = initialize(tmp_path / "model", 4, method="q=middle,k=qr,v=minor,o=kaiming", output=tmp_path / "out").manifest
    assert [sum(record.role == role for record in made.modules) for role in ATTENTION] == [6, 6, 6, 6]
    assert verify(tmp_path / "out").holds
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "out"), tmp_path / "out" / "ailora_init")
    ids = torch.arange(1000, 1016).view(2, 8)
    with torch.no_grad():
        before = AutoModel.from_pretrained(tmp_path / "model").eval()(ids).last_hidden_state
        after = adapted.eval()(ids).last_hidden_state
    assert float((after - before).norm() / before.norm()) < 1e-5


def test_names_of_methods_are_read_kindly_and_wrong_ones_named() -> None:
    assert find_method(" PiSSA ")[0].name == "pissa"
    assert find_method("Q=Principal, v=minor")[0].rules == {"q": "principal", "v": "minor"}
    for text, words in (
        ("q=least", "'least' is no rule"), ("x=minor", "'x' is no role"), ("q=qr,q=qr", "named twice"),
        ("eva", "activations or gradients"), ("LoRA_GA", "activations or gradients"), ("ailoro", "no method"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=words):
            find_method(text)


def test_dora_holds_the_norms_of_the_original(tmp_path: Path) -> None:
    model, _ = write_model("llama", tmp_path / "source")
    result = initialize(tmp_path / "source", 3, dora=True, method="pissa", output=tmp_path / "out")
    stored = load_file(result.adapter / "adapter_model.safetensors")
    weights = model.state_dict()
    for record in result.manifest.modules:
        found = stored[f"base_model.model.{record.module}.lora_magnitude_vector"]
        assert torch.allclose(found, weights[record.tensor].norm(dim=1), rtol=1e-6)


def test_dora_trained_and_merged_is_what_peft_computes(tmp_path: Path) -> None:
    model, _ = write_model("llama", tmp_path / "source")
    initialize(tmp_path / "source", 3, dora=True, output=tmp_path / "out")
    adapted = load_start(model, tmp_path / "out", tmp_path / "source", is_trainable=True)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            value *= 1.3 if "lora_" in name else 1.0
    adapted.save_pretrained(tmp_path / "trained")
    merge(tmp_path / "out", tmp_path / "trained", tmp_path / "merged")
    merged = type(model).from_pretrained(tmp_path / "merged").eval()
    inputs = FAMILIES["llama"].inputs()
    assert torch.allclose(output(merged, inputs), output(adapted, inputs), atol=1e-5)


def test_magnitudes_are_float32_and_verified(tmp_path: Path) -> None:
    """Adapters in 16 bits keep step 0; magnitudes of other rows are told, though every hash may fit."""
    model, original = write_model("llama", tmp_path / "source")
    result = initialize(tmp_path / "source", 3, dora=True, adapter_dtype="bfloat16", output=tmp_path / "out")
    adapted = load_start(model, tmp_path / "out", tmp_path / "source")
    assert float((output(adapted, FAMILIES["llama"].inputs()) - original).norm() / original.norm()) < 1e-5
    assert {check.name: check.holds for check in verify(tmp_path / "out").checks}["magnitudes"]
    file = result.adapter / "adapter_model.safetensors"
    stored = load_file(file)
    name = next(name for name in stored if "magnitude" in name)
    save_file({**stored, name: stored[name] * 1.001}, file)
    assert not {check.name: check.holds for check in verify(tmp_path / "out").checks}["magnitudes"]
    assert "ailora-tools merge" in (tmp_path / "out" / "README.md").read_text()
    assert "ailora-tools convert" not in (tmp_path / "out" / "README.md").read_text()


def test_a_residual_that_cannot_hold_what_was_moved_is_told(tmp_path: Path) -> None:
    """NLoRA's part may be larger than W; in bfloat16 step 0 is then another model."""
    heard: list[str] = []

    class Listening(Silent):
        def notice(self, text: str) -> None:
            heard.append(text)

    minilm(tmp_path / "model", torch.bfloat16)
    for name, options in (("a", {}), ("b", {"base_dtype": "float32"}), ("c", {"method": "pissa"})):
        heard.clear()
        settings = {"method": "nlora", **options}
        made = initialize(tmp_path / "model", 8, output=tmp_path / name, progress=Listening(), **settings).manifest
        poor = max(record.reconstruction_error for record in made.modules) > 0.01
        assert poor == (name == "a") == any("step 0 is not the original model" in text for text in heard)


def test_biases_beside_a_frozen_offset_are_refused(tmp_path: Path) -> None:
    build("bert with a head").save_pretrained(tmp_path / "model")
    with pytest.raises(OptionError, match="no --bias with --no-base"):
        initialize(tmp_path / "model", 3, bias="all", no_base=True, output=tmp_path / "out")


def test_dora_beside_a_frozen_offset_is_refused(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(OptionError, match="no --no-base"):
        initialize(tmp_path / "model", 3, dora=True, no_base=True, output=tmp_path / "out")
    with pytest.raises(OptionError, match="without a base"):
        initialize(tmp_path / "model", 3, rounding="nearest", no_base=True, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_bitfit_and_compositions(tmp_path: Path) -> None:
    build("bert with a head").save_pretrained(tmp_path / "model")
    run = CliRunner().invoke
    listed = run(
        main, ["init", str(tmp_path / "model"), "--method", "bitfit", "-o", str(tmp_path / "biases"), "--json"]
    )
    assert listed.exit_code == 0 and json.loads(listed.stdout)["count"] > 0
    dry = ["init", str(tmp_path / "model"), "--method", "bitfit", "-o", str(tmp_path / "none")]
    assert run(main, [*dry, "--dry-run"]).exit_code == 0 and not (tmp_path / "none").exists()
    idle = run(main, [*dry, "--rank", "8", "--dora"])
    assert idle.exit_code == 2 and "no --rank, --dora" in idle.output and not (tmp_path / "none").exists()
    clash = run(main, ["init", str(tmp_path / "model"), "--rank", "2", "--roles", "q,k", "--method", "q=qr,v=qr"])
    assert clash.exit_code != 0 and "those asked for q, k" in " ".join(clash.output.split())
    asked = ["init", str(tmp_path / "model"), "--rank", "2", "--method", "v=minor,q=qr", "-o", str(tmp_path / "out")]
    assert run(main, asked).exit_code == 0 and verify(tmp_path / "out").holds
    wrong = run(main, ["init", str(tmp_path / "model"), "--rank", "2", "--method", "v=least"])
    assert wrong.exit_code == 2 and "'least' is no rule" in " ".join(wrong.output.split())


@pytest.mark.parametrize("method", ON_ANY)
def test_residualize_takes_every_method_in_another_dtype_once(method: str, tmp_path: Path) -> None:
    """In bfloat16 no hash fits: how often s B A is in W decides, which NLoRA's part overlaps in a way of its own."""
    build("llama").save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 3, method=method, output=tmp_path / "out")
    model = type(build("llama")).from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    residualize(model, made.adapter)
    if made.manifest.base:
        with pytest.raises(TargetError, match="residualised already"):
            residualize(model, made.adapter)


@pytest.mark.parametrize("method", ["nlora", "random-orthonormal", "olora"])
def test_verify_names_the_original_in_place_of_the_residual(method: str, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    initialize(tmp_path / "model", 3, method=method, output=tmp_path / "out")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    save_file({key: value * (1 + 1e-6) for key, value in stored.items()}, tmp_path / "out" / "model.safetensors")
    told = {check.name: check for check in verify(tmp_path / "out").checks}["base"]
    assert not told.holds and "original" in told.detail
