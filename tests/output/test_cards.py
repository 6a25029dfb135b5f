"""README.md of every folder that is written, read by the Hub's own classes and by PEFT: what it names and keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build
from kit.hub_server import Fault, HubServer, Repo
from peft import PeftModel

from ailora_tools import bitfit, convert, export, extract, initialize, merge
from ailora_tools.checkpoint import remote
from ailora_tools.checkpoint.files import LocalFiles
from ailora_tools.checkpoint.source import open_files
from ailora_tools.output.cards.front import set_base_model
from ailora_tools.output.cards.source import KEPT, Source, source_of_adapter, source_of_model
from ailora_tools.progress import Progress

NAME = "org/model"
RELATIONS = ("adapter", "finetune", "merge", "quantized")
BODY = "# A model\n\nIt was made with care.\n\n---\n\n| x | y |\n|---|---|\n| ü | 2 |"
RESULTS = [EvalResult("text-generation", "wikitext", "WikiText", "perplexity", 12.5)]
FRONT = ModelCardData(
    license="other", license_name="own-licence", license_link="LICENSE", language=["no", "en"],
    pipeline_tag="text-generation", datasets=["org/data"], base_model="org/older", model_name="model",
    eval_results=RESULTS, extra_gated_prompt="Promise.",
)  # fmt: skip
CARD = f"---\n{FRONT.to_yaml()}\n---\n{BODY}\n"


def make(folder: Path, card: str | bytes | None = CARD) -> Path:
    """A tiny LLaMA that PEFT loads, with a card and a licence."""
    build("llama").save_pretrained(folder)
    (folder / "LICENSE").write_text("All yours.\n")
    if card is not None:
        (folder / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    return folder


def write_all(source: str | Path, out: Path) -> None:
    """Every kind of folder: by the verbs, one out of the other."""
    initialize(source, 3, output=out / "residual")
    initialize(source, 3, output=out / "no-base", no_base=True)
    initialize(source, 3, output=out / "lora", method="lora")
    convert(out / "residual" / "ailora_init", out / "residual", out / "plain")
    merge(out / "residual", out / "residual" / "ailora_init", out / "merged")
    merge(source, out / "plain", out / "merged-plain")
    extract(source, out / "residual", out / "between", rank=8)
    for start in ("residual", "plain"):
        for trainer in ("mlx", "torchtune"):
            export(out / start, trainer, out / f"{trainer}-{start}", base=out / "residual")


WHOLE = {"residual": "finetune", "merged": "finetune", "merged-plain": "finetune"}
ADAPTERS = (
    "residual/ailora_init", "no-base", "no-base/ailora_init", "no-base/ailora_offset", "lora", "lora/ailora_init",
    "plain", "between", "mlx-residual", "mlx-plain", "torchtune-residual", "torchtune-plain",
)  # fmt: skip
FOLDERS = {**WHOLE, **dict.fromkeys(ADAPTERS, "adapter")}


@pytest.fixture(scope="module")
def from_hub(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("hub")
    hub_server.reset()
    hub_server.repos[NAME] = Repo(tree(make(root / "source")), commit="c" * 40)
    write_all(NAME, root)
    hub_server.reset()
    yield root


@pytest.fixture(scope="module")
def from_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("path")
    write_all(make(root / "source"), root)
    return root


def card(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_says_what_it_is_made_from_and_its_licence(from_hub: Path, name: str) -> None:
    data = card(from_hub / name).data
    assert data.to_dict() == metadata_load(from_hub / name / "README.md")
    assert (data.base_model, data.base_model_relation) == (NAME, FOLDERS[name]) and FOLDERS[name] in RELATIONS
    assert data.base_model_revision == "c" * 40
    assert (data.license, data.license_name, data.language) == ("other", "own-licence", ["no", "en"])
    assert data.pipeline_tag == "text-generation" and "ailora" in data.tags
    libraries = {"mlx": "mlx", "torchtune": "torchtune"}
    whole = "transformers" if name in WHOLE else "peft"
    assert data.library_name == libraries.get(name.partition("-")[0], whole)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_link_to_the_licence_leads_to_it(from_hub: Path, name: str) -> None:
    link = card(from_hub / name).data.license_link
    assert (
        (from_hub / name / link).is_file()
        if name in WHOLE
        else link == (f"https://huggingface.co/{NAME}/blob/{'c' * 40}/LICENSE")
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_the_source_s_own_card_is_kept_once_under_a_heading_of_its_own(from_hub: Path, name: str) -> None:
    ours, _, kept = card(from_hub / name).text.partition(KEPT)
    assert kept == f"\n\n## The card of {NAME}\n\n{BODY}\n"
    assert ours.strip() and "with care" not in ours


@pytest.mark.parametrize("name", FOLDERS)
def test_numbers_measured_on_the_source_are_not_claimed_here(from_hub: Path, name: str) -> None:
    data = card(from_hub / name).data
    assert ModelCard(CARD).data.eval_results == RESULTS
    assert data.eval_results is None and not {"model-index", "datasets", "extra_gated_prompt"} & data.to_dict().keys()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_path_is_never_written_as_the_name_of_a_model(from_path: Path, name: str) -> None:
    data = card(from_path / name).data
    assert data.base_model is None and not {"base_model_relation", "base_model_revision"} & data.to_dict().keys()
    assert data.license == "other" and str(from_path) not in str(data.to_dict())


def test_the_first_line_of_a_residual_base_says_what_it_is_not(from_hub: Path, from_path: Path) -> None:
    for root, name in ((from_hub, NAME), (from_path, "source")):
        assert card(root / "residual").text.strip().startswith(f"**Alone this is not {name}**")
        assert f"**Not for {name} itself**" in card(root / "residual" / "ailora_init").text
        assert f"**Not for {name} itself**" in card(root / "mlx-residual").text
        assert "Not for" not in card(root / "mlx-plain").text


@pytest.mark.parametrize("name", ["residual", "no-base", "plain", "merged"])
def test_the_same_source_gives_the_same_card_twice(from_path: Path, name: str, tmp_path: Path) -> None:
    again = shutil.move(from_path / name, tmp_path / name)
    if name == "plain":
        convert(from_path / "residual" / "ailora_init", from_path / "residual", from_path / name)
    elif name == "merged":
        merge(from_path / "residual", from_path / "residual" / "ailora_init", from_path / name)
    else:
        initialize(from_path / "source", 3, output=from_path / name, no_base=name == "no-base")
    assert tree(from_path / name) == tree(again)


# ---- what is known of a source


@pytest.mark.parametrize("link", ["LICENSE", "./LICENSE", "/LICENSE"])
def test_a_link_to_a_file_of_the_source_becomes_an_address_and_an_address_stays(link: str) -> None:
    found = Source(NAME, NAME, "abc", {"license_link": link})
    assert found.licence(beside=False)["license_link"] == f"https://huggingface.co/{NAME}/blob/abc/LICENSE"
    assert found.licence(beside=True)["license_link"] == link
    for other in ("https://example.org/licence", "mailto:us@example.org"):
        assert Source(NAME, NAME, "abc", {"license_link": other}).licence(beside=False)["license_link"] == other


def test_a_snapshot_in_the_hub_s_cache_has_the_name_of_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / f"models--org--my-model/snapshots/{'d' * 40}"
    write_checkpoint(folder, llama_tensors())
    found = source_of_model(LocalFiles(folder))
    assert (found.name, found.repo, found.revision) == ("org/my-model", "org/my-model", "d" * 40)


def test_a_residual_base_on_the_hub_stands_for_its_source(from_hub: Path, hub: HubServer) -> None:
    hub.repos["me/residual"] = Repo(tree(from_hub / "residual"))
    found = source_of_model(open_files("me/residual"))
    assert (found.repo, found.revision, found.text, found.residual) == (NAME, "c" * 40, BODY, True)


def test_a_component_of_a_pipeline_has_the_licence_of_the_pipeline(hub: HubServer, tmp_path: Path) -> None:
    make(tmp_path / "pipe" / "text_encoder", None)
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    (tmp_path / "pipe" / "README.md").write_text(CARD)
    initialize(tmp_path / "pipe", 3, subfolder="text_encoder", output=tmp_path / "a")
    hub.repos[NAME] = Repo(tree(tmp_path / "pipe"), commit="c" * 40)
    initialize(NAME, 3, subfolder="text_encoder", output=tmp_path / "b")
    for name in "ab":
        assert card(tmp_path / name).data.license_name == "own-licence" and BODY in card(tmp_path / name).text
    assert card(tmp_path / "b").data.base_model == NAME
    assert card(tmp_path / "b").data.license_link.endswith(f"{'c' * 40}/LICENSE")


def test_a_merged_model_is_a_source_with_a_card_like_any_other(from_hub: Path, tmp_path: Path) -> None:
    initialize(from_hub / "merged", 2, output=tmp_path / "again")
    convert(tmp_path / "again" / "ailora_init", tmp_path / "again", tmp_path / "plain")
    for name in ("again", "plain"):
        assert card(tmp_path / name).data.base_model is None
        kept = card(tmp_path / name).text.partition(KEPT)[2]
        assert kept.strip("\n").partition("\n\n")[2].strip("\n") == card(from_hub / "merged").text.strip("\n")


@pytest.mark.parametrize(
    ("named", "repo"),
    [
        ("org/name", "org/name"), ("here/model", None), ("/models/it", None), ("../models/it", None), ("a/b/c", None),
        ("gpt2", None), ("hf://org/name", None), ("org/name@main", None), ("", None), (None, None), (7, None),
        ("C:\\models\\it", None), ("~/models", None), ("https://huggingface.co/org/name", None),
    ],
)  # fmt: skip
def test_an_adapter_names_a_model_only_where_that_can_be_no_path(
    named: object, repo: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"---\nbase_model: {json.dumps(named)}\n---\nText\n")
    config = {"base_model_name_or_path": named}
    assert source_of_adapter(LocalFiles(tmp_path), config).repo == repo
    assert source_of_adapter(LocalFiles(tmp_path), {}).repo == repo


# ---- cards that are broken


BROKEN: dict[str, tuple[bytes | None, str]] = {
    "none": (None, ""),
    "empty": (b"", ""),
    "no front matter": (b"# Only text\n", ""),
    "no YAML": (b"---\nlicense: [mit\n---\n# T\n", "no YAML in line"),
    "a tab": (b"---\nlicense:\n\t- mit\n---\n# T\n", "no YAML in line"),
    "a list": (b"---\n- mit\n---\n# T\n", "no mapping"),
    "deep": (b"---\na: " + b"[" * 5000 + b"\n---\n# T\n", "no YAML"),
    "tags of Python": (b"---\nlicense: !!python/object/apply:os.getcwd []\n---\n# T\n", ""),
    "other types": (b"---\nlicense: {a: b}\nlanguage: [[en]]\npipeline_tag: null\n---\n# T\n", ""),
    "never closed": (b"---\nlicense: mit\n# T\n", ""),
    "Latin-1": ("---\nlicense: mit\n---\n# Modèle\n".encode("latin-1"), "not all UTF-8"),
    "UTF-16": ("---\nlicense: mit\n---\n# T\n".encode("utf-16"), "no text"),
    "huge": (b"---\nlicense: mit\n---\n" + b"# text\n" * 400_000, "longer than"),
    "huge front matter": (b"---\nlicense: mit\nx:\n" + b"- text\n" * 200_000 + b"---\n", "characters"),
}
LICENSED = ("Latin-1", "huge")


class Heard(Progress):
    """What was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_card_costs_a_notice_and_nothing_else(name: str, tmp_path: Path) -> None:
    raw, told = BROKEN[name]
    source = write_checkpoint(tmp_path / "source", llama_tensors(dtype=torch.float32))
    if raw is not None:
        (source / "README.md").write_bytes(raw)
    heard = Heard()
    made = initialize(source, 3, output=tmp_path / "out", progress=heard)
    assert [text for text in heard.told if "README.md" in text] == [
        text for text in heard.told if told and told in text
    ]
    assert bool(told) == any("README.md" in text for text in heard.told)
    data = card(made.folder).data
    assert data.license == ("mit" if name in LICENSED else None) and data.language is None
    assert len((made.folder / "README.md").read_bytes()) < 10_000


@pytest.mark.parametrize("fault", [Fault(status=403), Fault(status=404), Fault(cut=5)])
def test_a_card_that_the_hub_does_not_give_costs_a_notice(
    fault: Fault, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = remote.Backoff(first=0.01, longest=0.05)
    monkeypatch.setattr(remote, "Backoff", lambda: patience)
    source = write_checkpoint(tmp_path / "source", llama_tensors(dtype=torch.float32))
    (source / "README.md").write_text(CARD)
    hub.repos[NAME] = Repo(tree(source))
    hub.fault_of = lambda asked: fault if asked.file == "README.md" else None
    heard = Heard()
    made = initialize(NAME, 3, output=tmp_path / "out", progress=heard)
    assert any("the card of the source are not copied" in text for text in heard.told)
    assert card(made.folder).data.base_model == NAME and card(made.folder).data.license is None


def test_a_list_of_biases_names_the_model(tmp_path: Path) -> None:
    build("bert with a head").save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "README.md").write_text(CARD)
    made = bitfit(tmp_path / "source", tmp_path / "out")
    assert card(made.folder).data.license_name == "own-licence" and BODY in card(made.folder).text


# ---- cards that others write on


CHANGES: dict[str, Callable[[Path], str]] = {
    "a path": lambda source: str(source),
    "a name": lambda source: NAME,
    "nothing": lambda source: "",
}


@pytest.mark.parametrize("named", CHANGES)
@pytest.mark.parametrize("saved", ["residual", "plain"])
def test_peft_writes_on_our_card_and_it_is_read_again(from_hub: Path, saved: str, named: str, tmp_path: Path) -> None:
    """As a trainer does that saves into the folder it loaded from."""
    folder = tmp_path / "adapter"
    shutil.copytree(from_hub / saved / "ailora_init" if saved == "residual" else from_hub / saved, folder)
    (folder / "ailora-result.json").unlink(missing_ok=True)
    model = PeftModel.from_pretrained(build("llama"), folder)
    model.get_base_model().config._name_or_path = CHANGES[named](from_hub / "source")
    model.save_pretrained(folder)
    found = card(folder)
    assert found.data.library_name == "peft" and found.data.license == "other"
    assert found.data.base_model == CHANGES[named](from_hub / "source")
    made = export(folder, "mlx", tmp_path / "mlx", base=from_hub / "residual")
    data = card(made.folder).data
    assert (data.license, data.base_model) == ("other", NAME)
    assert card(made.folder).text.count("with care") == 1


CARDS = {
    "ours": f"---\nbase_model: org/old\nbase_model_revision: abc\nlicense: mit\ntags:\n- a\n---\n\n{BODY}\n",
    "a list": "---\n# c\nlicense: mit\nbase_model:\n- org/a\n\n- org/b\n# base\ntags: [x]\n---\nbase_model: text\n",
    "not there": "---\nlicense: mit\nx: |\n  base_model: y\n---\nText",
    "Windows": '---\r\n"base_model": org/old\r\nlicense: mit\r\n---\r\nText\r\n',
    "no front matter": "Text\n---\nmore\n",
    "empty": "",
    "rules": "---\nlicense: mit\n---\nText\n---\nbase_model: x\n---\n",
}


@pytest.mark.parametrize("revision", ["e" * 40, None])
@pytest.mark.parametrize("name", CARDS)
def test_another_base_model_changes_nothing_else(name: str, revision: str | None) -> None:
    before, after = ModelCard(CARDS[name]), set_base_model(CARDS[name], "me/pushed", revision)
    expected = {**before.data.to_dict(), "base_model": "me/pushed", "base_model_revision": revision}
    assert ModelCard(after).data.to_dict() == {key: value for key, value in expected.items() if value is not None}
    assert ModelCard(after).text.lstrip("\n") == before.text.lstrip("\n")
    ours = ("base_model", '"base_model', "- org/", "---")
    lines = [line for line in CARDS[name].splitlines() if not line.startswith(ours)]
    assert [line for line in after.splitlines() if line in lines and line] == [line for line in lines if line]
    assert set_base_model(after, "me/pushed", revision) == after
