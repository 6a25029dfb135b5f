"""Folders changed by someone who knows the tool: what changes the model is told; the guide says why the rest is not.

Every row is tried twice, with the original given and with it gone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.families import build
from kit.real_models import ROOT
from kit.tally import Tally
from kit.tampering import CONFIG, INDEX, OFFSET, WEIGHTS, Body, Tampered, disguised, layer, records, swapped
from safetensors.torch import load_file, save_file

from ailora_tools import initialize, verify
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import AiloraError
from ailora_tools.output.manifest import fingerprint
from ailora_tools.output.spans import write_json

Q0, Q1 = layer(0, "q_proj"), layer(1, "q_proj")
MLP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
FUSED = "transformer.h.0.attn.c_attn"

# Why something is not told, in the words of the guide.
SEALED = "Whoever can write to the folder can seal it again"
RESCALED = "A times c beside B divided by c"
OTHER_START = "factors that the rule does not give"
TEXTS = "`README.md` and `lr_groups.json`"
NAMED = "the source that the manifest names"
FOLDERS = "folders beside the model"
MOVED = "an absolute path in `base_model_name_or_path`"
NUMBERS = "`survival`, `gap` and the other numbers"
NEVER = ""  # it is told


@dataclass(frozen=True)
class Row:
    """One way to change a folder. `given` and `gone` say why it is not told with the original and without it."""

    name: str
    change: Callable[[Tampered], object]
    given: str = NEVER
    gone: str = SEALED
    of: str = "plain"


def both(*steps: Callable[[Tampered], object]) -> Callable[[Tampered], object]:
    return lambda folder: [step(folder) for step in steps]


def seal(edit: Callable[[Body], object] = lambda body: None, *added: str) -> Callable[[Tampered], object]:
    return lambda folder: folder.seal(edit, *added)


def add(name: str, data: bytes = b"{}") -> Callable[[Tampered], object]:
    def write(folder: Tampered) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return write


def config(**changes: object) -> Callable[[Tampered], object]:
    return lambda folder: folder.json("config.json", **changes)


def adapter(**changes: object) -> Callable[[Tampered], object]:
    return lambda folder: folder.json(CONFIG, **changes)


def unsealed() -> Iterator[Row]:
    """The manifest as it was."""
    yield Row("rope_theta in config.json", config(rope_theta=1e6), gone=NEVER)
    for name in (
        "modeling_x.py", "chat_template.jinja", "added_tokens.json", "consolidated.00.pth", "model.gguf",
        "ailora_init/adapter_model.bin", "pytorch_model.bin", "additional_chat_templates/default.jinja",
    ):  # fmt: skip
        yield Row(f"{name} added", add(name), gone=NEVER)
    yield Row("weights in another folder", add("sub/model.safetensors"), FOLDERS, FOLDERS)
    yield Row("one file beside the shards", beside_the_shards, gone=NEVER)
    yield Row("a link to nothing, yet", lambda f: (f / "model.safetensors").symlink_to("later"), gone=NEVER)
    yield Row("a shard behind a link", lambda f: linked(f, f.shard(MLP)), gone=NEVER)
    yield Row("the adapter behind a link", lambda f: linked(f, "ailora_init"), gone=NEVER)
    yield Row("tokenizer.json cut in half", lambda f: (f / "tokenizer.json").write_text('{"ver'), gone=NEVER)


def in_companions() -> Iterator[Row]:
    yield Row("rope_theta, sealed", both(config(rope_theta=1e6), seal()))
    yield Row("rms_norm_eps, sealed", both(config(rms_norm_eps=1.0), seal()))
    yield Row("another number of heads", both(config(num_attention_heads=2), seal()))
    code = both(config(auto_map={"AutoModel": "x.M"}), add("x.py", b"import os\n"))
    yield Row("code of its own", both(code, seal(lambda body: None, "x.py")))
    yield Row("another tokenizer", both(add("tokenizer.json", b'{"version": "2"}'), seal()))
    yield Row("two companions exchanged", both(exchanged, seal()))
    yield Row("config.json empty", both(add("config.json", b""), seal()))
    yield Row("a companion taken away", both(lambda f: (f / "generation_config.json").unlink(), seal()))
    tokens = add("special_tokens_map.json", b'{"eos_token": "<s>"}')
    yield Row("a companion added", both(tokens, seal(lambda body: None, "special_tokens_map.json")))
    hidden = seal(lambda body: [body["files"].pop(name) for name in ("config.json", "tokenizer.json")])
    yield Row("files no longer listed", both(config(rope_theta=1e6), hidden), gone=NEVER)
    texts = both(add("README.md", b"pip install evil"), add("lr_groups.json"), seal())
    yield Row("card and learning rates", texts, TEXTS)


def in_shards() -> Iterator[Row]:
    yield Row("an untouched matrix", both(lambda f: f.weight(MLP, lambda W: 1.5 * W), seal()))
    yield Row("one entry of a norm", both(lambda f: f.weight(NORM, lambda w: changed(w, 2.0, 3)), seal()))
    biased = both(lambda f: put(f, f"{Q0}.bias", torch.ones(48)), config(attention_bias=True), seal())
    yield Row("a bias for W^Q", biased, gone=NEVER)
    yield Row("a tensor more", both(lambda f: put(f, "lm_head.bias", torch.ones(64)), seal()), gone=NEVER)
    yield Row("a tensor less", both(lambda f: take(f, NORM), seal()), gone=NEVER)
    yield Row("another dtype for the same bytes", both(recast, seal()), gone=NEVER)
    yield Row("and a source that had it so", recast_at_the_source)
    yield Row("metadata of another framework", both(framework, seal()), gone=NEVER)
    extra = both(extra_shard, seal(lambda body: None, "extra.safetensors"))
    yield Row("an extra shard for a matrix", extra, gone=NEVER)
    more = both(another_shard, seal(lambda body: None, "more.safetensors"))
    yield Row("an extra shard for a new tensor", more, gone=NEVER)
    single = both(beside_the_shards, seal(lambda body: None, "model.safetensors"))
    yield Row("one file listed beside the shards", single, gone=NEVER)
    yield Row("an index that leads astray", both(astray, seal()), gone=NEVER)


def in_adapter() -> Iterator[Row]:
    layers = swapped(Q0, Q1)
    yield Row("two layers exchanged", both(lambda f: f.tensors(WEIGHTS, layers), seal()))
    renamed = seal(lambda body: [entry.update(module={Q0: Q1, Q1: Q0}.get(entry["module"], entry["module"]))
                                 for entry in body["modules"]])  # fmt: skip
    yield Row("two layers exchanged, their names too", both(lambda f: f.tensors(WEIGHTS, layers), renamed))
    yield Row("A grows, B shrinks", both(lambda f: f.factors(Q0, lambda A, B: (1000 * A, B / 1000)), seal()), RESCALED)
    yield Row("NaN in A", both(lambda f: f.factors(Q0, lambda A, B: (A.fill_(torch.nan), B)), seal()), gone=NEVER)
    infinite = seal(records(lambda entry: entry.update(reconstruction_error=float("inf"))))
    yield Row("infinity, as recorded", both(lambda f: f.factors(Q0, lambda A, B: (A / 0, B)), infinite), gone=NEVER)
    yield Row("a start of one's own", both(another_start, seal()), OTHER_START)
    yield Row("an adapter that drowns W", both(drowned, seal(claim(0.003))), gone=NEVER)
    doubled = seal(records(lambda entry: entry.update(alpha=8)))
    yield Row("alpha doubled, scaling kept", both(adapter(lora_alpha=8), doubled), gone=NEVER)
    scaled = seal(records(lambda entry: entry.update(alpha=8, scaling=2.0)))
    yield Row("alpha and scaling doubled", both(adapter(lora_alpha=8), scaled))
    pattern = adapter(alpha_pattern={Q0: 8}, rank_pattern={Q0: 4})
    one = seal(records(lambda entry: entry.update(alpha=8, scaling=2.0), module=Q0))
    yield Row("alpha of one module", both(pattern, one))
    louder = records(lambda entry: entry.update(scaling=2.0))
    rslora = seal(lambda body: [body["settings"].update(rslora=True), louder(body)])
    yield Row("rsLoRA", both(adapter(use_rslora=True), rslora))
    twice = lambda f: (f / CONFIG).write_text((f / CONFIG).read_text().replace('"r": 4', '"r": 1,\n  "r": 4'))  # noqa: E731
    yield Row("a rank that stands twice", both(twice, seal()), gone=NEVER)
    yield Row("another path of the base", both(adapter(base_model_name_or_path="/evil"), seal()), MOVED, MOVED)
    for name, value in (
        ("layers_to_transform", [0]), ("exclude_modules", ["q_proj"]), ("fan_in_fan_out", True), ("bias", "all"),
        ("lora_dropout", 0.9), ("modules_to_save", ["lm_head"]), ("layer_replication", [[0, 2], [1, 2]]),
        ("target_parameters", ["x"]), ("lora_bias", True), ("target_modules", ["q_proj", "v_proj", "k_proj"]),
        ("target_modules", ".*[qv]_proj"), ("base_model_name_or_path", "evil/model"), ("r", 4.0),
        ("init_lora_weights", "pissa"),
    ):  # fmt: skip
        yield Row(f"{name} = {value}", both(adapter(**{name: value}), seal()), gone=NEVER)


def in_records() -> Iterator[Row]:
    zeroed = lambda f: f.weight(f"{Q0}.weight", torch.zeros_like)  # noqa: E731
    yield Row("a zeroed W^Q and its error", both(zeroed, seal(claim(2.0))), gone=NEVER)
    yield Row("a zeroed W^Q and a likely error", both(zeroed, seal(claim(1e-6))))
    entry = lambda f: f.weight(f"{Q0}.weight", lambda W: changed(W, 1.03, 3, 5))  # noqa: E731
    yield Row("one entry of W^Q, within the norm", both(entry, seal(claim(0.003))))
    yield Row("an error below zero", seal(records(lambda one: one.update(reconstruction_error=-1.0))), gone=NEVER)
    yield Row("another rule", seal(records(lambda one: one.update(rule="minor"))))
    yield Row("another role and layer", seal(records(lambda one: one.update(role="v", layer=7), module=Q0)))
    yield Row("no base, it says", both(lambda f: f.weight(MLP, lambda W: 9 * W), seal(denied)), gone=NEVER)
    yield Row("no module at all", seal(lambda body: body.update(modules=[])), gone=NEVER)
    yield Row("one layer only", both(first_layer, seal(lambda body: body["settings"].update(layers="0"))))
    yield Row("another source", repointed, gone=NAMED)
    numbers = records(lambda one: one.update(survival=1.0, gap=1.0, motion=9.0, singular_values=[1.0]))
    yield Row("better numbers", seal(numbers), NUMBERS, NUMBERS)
    outside = lambda f: f.seal(lambda body: None, str(f.source / "config.json"))  # noqa: E731
    yield Row("a file outside of the folder", outside, gone=NEVER)
    yield Row("a settings key more", seal(lambda body: body["settings"].update(x=1)))


def of_other_folders() -> Iterator[Row]:
    """With a float32 base, fused, DoRA, without a base, plain LoRA."""
    yield Row("another total in the index", both(restated, seal()), of="wide")
    yield Row("another map in the index", both(astray, seal()), of="wide", gone=NEVER)
    yield Row("one entry of a float32 W^Q", both(lambda f: f.weight(f"{Q0}.weight", lambda W: changed(W, 1.0001, 3, 5)),
                                                 seal(claim(5e-8))), of="wide")  # fmt: skip
    smaller = both(lambda f: f.factors(Q0, lambda A, B: (1000 * A, B / 1000)), seal())
    yield Row("A grows, B shrinks, in float32", smaller, of="wide", gone=RESCALED)
    yield Row("an adapter for W^K", both(lambda f: f.factors(FUSED, into_keys), seal()), of="fused", gone=NEVER)
    yield Row("rows of W^K", both(lambda f: f.weight(f"{FUSED}.weight", keys_doubled), seal()), of="fused")
    yield Row("parts exchanged", seal(parts_exchanged), of="fused", gone=NEVER)
    louder = lambda held: held.update({key: 2 * value for key, value in held.items() if "magnitude" in key})  # noqa: E731
    yield Row("magnitudes doubled", both(lambda f: f.tensors(WEIGHTS, louder), seal()), of="dora")
    halved = lambda held: held.update({key: value / 2 for key, value in held.items()})  # noqa: E731
    yield Row("another offset", both(lambda f: f.tensors(OFFSET, halved), seal()), of="two", gone=NEVER)
    more = lambda held: held.update(x=torch.ones(2))  # noqa: E731
    yield Row("an offset with more", both(lambda f: f.tensors(OFFSET, more), seal()), of="two", gone=NEVER)
    yield Row("a config beside", both(add("config.json"), seal(lambda body: None, "config.json")), of="two")
    yield Row("another original", both(adapter(base_model_name_or_path="evil/model"), seal()), of="two", gone=NEVER)
    started = lambda f: f.factors(Q0, lambda A, B: (A, B + 1))  # noqa: E731
    yield Row("plain LoRA that is not zero", both(started, seal()), of="lora")


def beside_the_shards(folder: Tampered) -> None:
    held = {key: value for path in folder.folder.glob("model-*") for key, value in load_file(path).items()}
    save_file({**held, MLP: 9 * held[MLP]}, folder / "model.safetensors", {"format": "pt"})


def linked(folder: Tampered, name: str) -> None:
    shutil.move(folder / name, folder.folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.folder.parent / "elsewhere")


def exchanged(folder: Tampered) -> None:
    one, other = folder / "tokenizer.json", folder / "generation_config.json"
    texts = one.read_text(), other.read_text()
    other.write_text(texts[0]), one.write_text(texts[1])


def restated(folder: Tampered) -> None:
    index = json.loads((folder / INDEX).read_text())
    write_json(folder / INDEX, {**index, "metadata": {"total_size": 1}})


def put(folder: Tampered, name: str, value: torch.Tensor) -> None:
    shard = folder.shard(MLP)
    folder.tensors(shard, lambda held: held.update({name: value.to(held[MLP].dtype)}))
    folder.maps(**{name: shard})


def take(folder: Tampered, name: str) -> None:
    folder.tensors(folder.shard(name), lambda held: held.pop(name))
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))


def recast(folder: Tampered) -> None:
    """The header says F16 of one tensor; not a byte of the data changes."""
    path = folder / folder.shard(MLP)
    raw = path.read_bytes()
    stop = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:stop])
    header[MLP]["dtype"] = "F16"
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(raw[:8] + text.ljust(stop - 8) + raw[stop:])


def recast_at_the_source(folder: Tampered) -> None:
    recast(folder)
    shards = fingerprint(open_checkpoint(folder.folder))
    folder.seal(lambda body: body["source"].update(shards=shards))


def framework(folder: Tampered) -> None:
    path = folder / folder.shard(MLP)
    save_file(load_file(path), path, {"format": "mlx"})


def extra_shard(folder: Tampered) -> None:
    save_file({MLP: 9 * load_file(folder / folder.shard(MLP))[MLP]}, folder / "extra.safetensors", {"format": "pt"})
    folder.maps(**{MLP: "extra.safetensors"})


def another_shard(folder: Tampered) -> None:
    save_file({"new": torch.ones(2)}, folder / "more.safetensors", {"format": "pt"})
    folder.maps(new="more.safetensors")


def astray(folder: Tampered) -> None:
    """Two tensors in one shard, of which one lies in the other."""
    folder.maps(**{MLP: next(path.name for path in folder.folder.glob("model-*") if path.name != folder.shard(MLP))})


def claim(error: float) -> Callable[[Body], object]:
    """Another error for W^Q of layer 0; bfloat16 makes up to 0.004 in honest folders."""
    return records(lambda entry: entry.update(reconstruction_error=error), module=Q0)


def changed(W: torch.Tensor, factor: float, *place: int) -> torch.Tensor:
    """One entry times a factor."""
    W[place] *= factor
    return W


def another_start(folder: Tampered) -> None:
    """Random factors as large as the rule's, and the residual that fits them."""
    W = load_file(folder.source / folder.shard(f"{Q0}.weight"))[f"{Q0}.weight"].float()
    draw = torch.Generator().manual_seed(1)
    A, B = 0.1 * torch.randn(4, 48, generator=draw), 0.1 * torch.randn(48, 4, generator=draw)
    folder.factors(Q0, lambda *_: (A, B))
    folder.weight(f"{Q0}.weight", lambda _: W - B @ A)
    folder.seal(claim(0.003))


def drowned(folder: Tampered) -> None:
    """Factors so large that rounding their residual loses W, honestly."""
    W = load_file(folder.source / folder.shard(f"{Q0}.weight"))[f"{Q0}.weight"].float()
    folder.factors(Q0, disguised)
    A, B = (load_file(folder / WEIGHTS)[f"base_model.model.{Q0}.lora_{side}.weight"] for side in "AB")
    folder.weight(f"{Q0}.weight", lambda _: W - B @ A)


def denied(body: Body) -> None:
    body.update(base=False, modules=[])


def first_layer(folder: Tampered) -> None:
    """Layer 1 keeps its residual and loses its adapter."""
    folder.tensors(WEIGHTS, lambda held: [held.pop(key) for key in list(held) if ".layers.1." in key])
    folder.seal(lambda body: body.update(modules=[one for one in body["modules"] if one["layer"] == 0]))


def repointed(folder: Tampered) -> None:
    """The manifest names a source that was changed alike."""
    other = folder.folder.parent / "other"
    shutil.copytree(folder.source, other)
    for place in (folder, Tampered(other, other)):
        place.weight(MLP, lambda W: 9 * W)
    folder.seal(lambda body: body["source"].update(location=str(other)))


def into_keys(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    width = len(B) // 3
    return A, B.index_fill(0, torch.arange(width, 2 * width), 0.5)


def keys_doubled(W: torch.Tensor) -> torch.Tensor:
    width = W.shape[1] // 3
    return torch.cat([W[:, :width], 2 * W[:, width : 2 * width], W[:, 2 * width :]], dim=1)


def parts_exchanged(body: Body) -> None:
    first, second = body["modules"][:2]
    first["part"], second["part"] = second["part"], first["part"]


ROWS = [
    row
    for rows in (unsealed, in_companions, in_shards, in_adapter, in_records, of_other_folders)
    for row in rows()
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of every kind; the source of each has its name with a dash before it."""
    root = tmp_path_factory.mktemp("folders")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1e4, "rms_norm_eps": 1e-5}
    kinds = {"plain": {}, "dora": {"dora": True}, "two": {"no_base": True}, "lora": {"method": "lora"}}
    kinds["wide"] = {"base_dtype": "float32"}
    for name, options in kinds.items():
        source = write_checkpoint(root / f"-{name}", llama_tensors(), shards=2, **heads)
        (source / "generation_config.json").write_text('{"eos_token_id": 2}')
        initialize(source, 4, output=root / name, **options)
    build("gpt2").save_pretrained(root / "-fused")
    initialize(root / "-fused", 3, output=root / "fused")
    return root


def tampered(row: Row, written: Path, place: Path) -> Tampered:
    shutil.copytree(written / row.of, place / "out")
    folder = Tampered(place / "out", written / f"-{row.of}")
    row.change(folder)
    return folder


@contextmanager
def gone(path: Path) -> Iterator[None]:
    path.rename(path.with_suffix(".gone"))
    try:
        yield
    finally:
        path.with_suffix(".gone").rename(path)


def told(folder: Tampered, source: Path | None) -> Sequence[str]:
    """The sentences of the checks that do not hold; one is enough."""
    try:
        return [check.detail for check in verify(folder.folder, source=source).checks if not check.holds]
    except AiloraError as error:
        return [error.problem]


def guide() -> str:
    return " ".join((ROOT / "examples" / "guide" / "security.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("of", ["plain", "wide", "dora", "two", "lora", "fused"])
def test_untouched_folders_hold_and_can_be_sealed_again(of: str, written: Path, tmp_path: Path) -> None:
    folder = tampered(Row("nothing", seal(), of=of), written, tmp_path)
    assert not told(folder, folder.source)
    assert (folder / "ailora.json").read_bytes() == (written / of / "ailora.json").read_bytes()


def test_shards_saved_again_are_the_same(written: Path, tmp_path: Path) -> None:
    """So that no row is told only for how it was written."""
    folder = tampered(Row("nothing", lambda f: f.tensors(f.shard(MLP), lambda held: None)), written, tmp_path)
    folder.tensors(WEIGHTS, lambda held: None)
    folder.seal()
    assert not told(folder, folder.source)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_changes_the_model_is_told(row: Row, written: Path, tmp_path: Path) -> None:
    folder = tampered(row, written, tmp_path)
    assert bool(told(folder, folder.source)) == (row.given == NEVER)
    with gone(folder.source):
        found = told(folder, None)
    assert bool(found) == (row.gone == NEVER), found
    assert row.given in guide() and row.gone in guide()


def test_the_table_is_long_enough() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 49


@pytest.mark.faults
def test_the_table_is_counted(written: Path, tmp_path: Path) -> None:
    """One line for the report: survived is told, or explained in the guide."""
    tally = Tally("folders tampered with, then verify --source")
    for number, row in enumerate(ROWS):
        folder = tampered(row, written, tmp_path / str(number))
        right = bool(told(folder, folder.source)) == (row.given == NEVER)
        tally.add(row.name, [] if right else ["held as good, and the guide does not say so"])
    tally.close()
