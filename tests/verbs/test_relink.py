"""`relink`: two fields change, by value, and every other byte of the folder stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from kit.checkpoints import llama_tensors, tree, write_checkpoint

from ailora_tools import convert, initialize, relink, verify
from ailora_tools.cli.group import main
from ailora_tools.errors import AiloraError, VerificationError
from ailora_tools.output.relinked import relinked_config
from ailora_tools.verbs import relink as module

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual base, a start without one, a plain LoRA."""
    root = tmp_path_factory.mktemp("made")
    model = write_checkpoint(root / "model", llama_tensors())
    initialize(model, rank=2, output=root / "base")
    initialize(model, rank=2, output=root / "two", no_base=True)
    convert(root / "base" / "ailora_init", root / "base", root / "plain")
    return root


@pytest.fixture
def folder(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / request.param, tmp_path / request.param)


each = pytest.mark.parametrize("folder", ["base", "two", "plain"], indirect=True)


@each
def test_two_fields_change_and_nothing_else(folder: Path) -> None:
    before = tree(folder)
    relink(folder, "org/model@v1")
    after = tree(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and {Path(name).name for name in changed} <= {
        CONFIG,
        "ailora.json",
        "README.md",
    }
    for name in (name for name in changed if name.endswith(CONFIG)):
        old, new = json.loads(before[name]), json.loads(after[name])
        assert (new["base_model_name_or_path"], new["revision"]) == ("org/model", "v1")
        lines = zip(before[name].splitlines(), after[name].splitlines(), strict=True)
        assert len([1 for one, other in lines if one != other]) == 2 and old.keys() == new.keys()
    assert sum(name.endswith(CONFIG) for name in changed) == (2 if folder.name == "two" else 1)


@pytest.mark.parametrize("folder", ["base", "two"], indirect=True)
def test_verify_still_holds_and_tells_another_name(folder: Path) -> None:
    relink(folder, "org/model@v1")
    assert verify(folder).holds
    for config in folder.glob(f"*/{CONFIG}"):
        config.write_text(config.read_text().replace("org/model", "evil/model"))
    assert not verify(folder).holds


@each
def test_there_and_back_again(folder: Path) -> None:
    relink(folder, "org/model@v1")
    once = tree(folder)
    relink(folder, "org/other")
    assert tree(folder) != once
    assert relink(folder, "org/model@v1").written and tree(folder) == once
    assert relink(folder, "org/model@v1").written == ()


def test_a_path_that_is_there_wins(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "plain", tmp_path / "plain")
    found = relink(folder, str(made / "model")).configs[0]
    assert (found.after, found.revision_after) == (str((made / "model").resolve()), None)


@pytest.mark.parametrize("folder", ["two"], indirect=True)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_was_interrupted_is_ended_by_the_next_run(
    folder: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = Path.replace, []

    def broken(self: Path, target: Path) -> Path:
        if len(done) == steps and self.name.endswith(".partial"):
            raise OSError(28, "No space left on device", str(self))
        done.append(target)
        return real(self, target)

    names = set(tree(folder))
    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(AiloraError, match="No space left"):
        relink(folder, "org/model@v1")
    monkeypatch.undo()
    assert set(tree(folder)) == names, "nothing half-written is left"
    relink(folder, "org/model@v1")
    assert verify(folder).holds


@pytest.mark.parametrize("folder", ["base"], indirect=True)
def test_a_config_that_was_changed_is_not_blessed(folder: Path) -> None:
    config = folder / "ailora_init" / CONFIG
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 4'))
    before = tree(folder)
    with pytest.raises(VerificationError, match=r"is not what ailora\.json says"):
        relink(folder, "org/model")
    assert tree(folder) == before


@pytest.mark.parametrize(
    "text",
    [
        '{"base_model_name_or_path": "x", "r": 4}', '{"r":4,"base_model_name_or_path":null,"revision":null}',
        '{\r\n  "a": {"revision": "no", "base_model_name_or_path": "no"},\r\n  "base_model_name_or_path": "x"\r\n}\r\n',
        '\ufeff{"revision": "\\u00e9", "base_model_name_or_path": "é", "l": [1e5, {"revision": 2}]}',
    ],
)  # fmt: skip
def test_any_spelling_of_json_is_kept(text: str) -> None:
    made = relinked_config(text.encode(), "here", "org/model", "v1").decode()
    old, new = (json.loads(one.removeprefix("\ufeff")) for one in (text, made))
    assert new == {**old, "base_model_name_or_path": "org/model", "revision": "v1"}
    assert made.count("\r") == text.count("\r") + ("\r" in text) and made[0] == text[0] and made[-1] == text[-1]
    assert all(part in made for part in ('"r": 4', '"r":4', "[1e5, ", '{"revision": "no"') if part in text)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[]", "names no base"), ("{}", "names no base"), ("{", "not valid JSON"),
     ('{"base_model_name_or_path": 1, "base_model_name_or_path": 2}', "twice")],
)  # fmt: skip
def test_what_is_no_config_is_refused(text: str, words: str) -> None:
    with pytest.raises(AiloraError, match=words):
        relinked_config(text.encode(), "here", "org/model", None)


@each
def test_the_card_of_an_adapter_names_the_base_too(folder: Path) -> None:
    relink(folder, "org/model@v1")
    for card in folder.rglob("README.md"):
        of_adapter = (card.parent / CONFIG).is_file() or folder.name == "two"
        found = ModelCard.load(card).data.to_dict()
        named = found.get("base_model"), found.get("base_model_revision")
        assert named == (("org/model", "v1") if of_adapter else (None, None))


@pytest.mark.parametrize("base", ["", "model", "org/model@", "https://example.com/x"])
def test_what_names_no_base_is_refused(base: str, made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "plain", tmp_path / "plain")
    before = tree(folder)
    result = CliRunner().invoke(main, ["relink", str(folder), "--base", base])
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and tree(folder) == before


def test_a_folder_without_an_adapter_is_named(made: Path) -> None:
    result = CliRunner().invoke(main, ["relink", str(made / "model"), "--base", "org/model"])
    assert result.exit_code == 1 and "no adapter_config.json" in result.stderr


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "plain", tmp_path / "plain")
    folder.chmod(0o555)
    with pytest.raises(AiloraError, match="Permission denied"):
        relink(folder, "org/model")
    folder.chmod(0o755)


def test_the_screen_tells_before_and_after(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "plain", tmp_path / "plain")
    result = CliRunner().invoke(main, ["relink", str(folder), "--base", "org/model@v1"])
    assert result.exit_code == 0 and result.stdout.strip().endswith("model → org/model@v1")
    told = json.loads(CliRunner().invoke(main, ["relink", str(folder), "--base", "org/x", "--json"]).stdout)
    assert told["configs"][0]["before"] == "org/model" and told["written"] == ["README.md", CONFIG]
    assert repr(module.relink(folder, "org/y")).startswith("<Relink of ")
