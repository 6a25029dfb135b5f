"""What leads a user on: verbs in the order of work, names that are nearly right, completion, and where a log is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools.cli.group import main

ORDER = ["inspect", "analyze", "init", "verify", "convert", "merge", "extract", "export", "push", "relink", "report"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama_tensors(), shards=2)


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_verbs_stand_in_the_order_of_work_with_whole_sentences(arguments: list[str]) -> None:
    done = run(*arguments)
    lines = re.findall(r"^  ([a-z]+) +([A-Z].*)$", done.stdout, re.MULTILINE)
    known = [verb for verb, _ in lines if verb in ORDER]
    assert done.exit_code == 0 and known == ORDER
    assert all(text.endswith(".") and not text.endswith("..") for verb, text in lines if verb in ORDER)
    assert done.stdout.rstrip().split("\n")[-1].startswith("  ailora-tools ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["initialize", "x"], "Did you mean 'init'?"),
        (["analyse", "x"], "Did you mean 'analyze'?"),
        (["help"], "Did you mean '--help'?"),
        (["verfy"], "Did you mean 'verify'?"),
        (["init", "x", "--method", "pisa"], "Did you mean pissa?"),
        (["init", "x", "--method", "ailora-reverse"], "Did you mean ailora-reversed?"),
        (["init", "x", "--rnak", "3"], "--rank"),
    ],
)
def test_what_is_nearly_right_gets_a_suggestion(arguments: list[str], hint: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and hint in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("name", "whole"),
    [("gpt2", "openai-community/gpt2"), ("bert-base-uncased", "google-bert/bert-base-uncased"),
     ("t5-small", "google-t5/t5-small"), ("distilgpt2", "distilbert/distilgpt2"), ("other", "OWNER/other")],
)  # fmt: skip
def test_a_name_without_an_owner_is_told_its_owner(name: str, whole: str) -> None:
    done = run("inspect", name)
    assert done.exit_code == 1 and done.stderr.rstrip().endswith(f"On the Hub it would be {whole}.")


@pytest.mark.parametrize("roles", ["Q,V", "q, v", " V , Q"])
def test_roles_may_have_capitals_and_blanks(roles: str, model: Path) -> None:
    assert run("inspect", model, "--roles", roles).stdout == run("inspect", model).stdout


def test_verify_says_what_another_folder_is(model: Path, tmp_path: Path) -> None:
    run("init", model, "--rank", 2, "-o", tmp_path / "start")
    for folder, words in ((model, "a model, but not a folder of `init`"),
                          (tmp_path / "start" / "ailora_init", "an adapter, not a folder of `init`")):  # fmt: skip
        done = run("verify", folder)
        assert done.exit_code == 1 and words in done.stderr


def test_init_without_a_rank_takes_8(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", llama_tensors())
    assert "model-ailora-r8" in run("init", model, "--dry-run").stdout


def completed(*words: str) -> list[tuple[str, str]]:
    found = BashComplete(main, {}, "ailora-tools", "_AILORA_TOOLS_COMPLETE").get_completions(
        list(words[:-1]), words[-1]
    )
    return [(item.type, item.value) for item in found]


@pytest.mark.parametrize(
    "words",
    [["inspect", "mod"], ["analyze", "mod"], ["analyze", "model", "--against", "tu"], ["init", "mod"], ["merge", "mod"],
     ["verify", "out"], ["verify", "out", "--source", "mod"], ["init", "model", "--ranks", "r"], ["report", "rep"]],
)  # fmt: skip
def test_shells_complete_paths(words: list[str]) -> None:
    assert completed(*words) in ([("file", words[-1])], [("dir", words[-1])])


def test_shells_complete_verbs_and_methods() -> None:
    assert ("plain", "inspect") in completed("in") and ("plain", "init") in completed("in")
    assert completed("init", "model", "--method", "mi") == [("plain", "milora"), ("plain", "mica"), ("plain", "middle")]


@pytest.mark.parametrize("verb", ["init", "bitfit", "report"])
def test_quiet_leaves_the_result(verb: str, model: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "biased", {**llama_tensors(), "model.norm.bias": llama_tensors()["model.norm.weight"]})
    commands = {
        "init": ["init", model, "-r", 2, "-o", tmp_path / "out", "--overwrite"],
        "bitfit": ["init", tmp_path / "biased", "--method", "bitfit", "-o", tmp_path / "out", "--overwrite"],
        "report": ["report", tmp_path / "report"],
    }
    run("analyze", model, "-r", 2, "-o", tmp_path / "report")
    loud, quiet = run(*commands[verb]), run(*commands[verb], "--quiet")
    assert loud.exit_code == quiet.exit_code == 0 and quiet.stdout == loud.stdout != "" and quiet.stderr == ""


def test_verbose_tells_every_step_and_a_log_keeps_them(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    done = run("init", model, "-r", 2, "-o", tmp_path / "out", "--verbose", "--log", log)
    assert all(f"Decomposing {step}/4: " in done.stderr for step in range(1, 5))
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    stages = ["Decomposing", *(f"Decomposing {step}/4" for step in range(1, 5)), "Copying"]
    assert [line[20:].split(":")[0] for line in lines][1:7] == stages
    assert lines[0][20:].startswith("ailora-tools") and lines[-1].endswith(" done")
    run("init", model, "-r", 999, "-o", tmp_path / "other", "--log", log)
    assert log.read_text().startswith("\n".join(lines)) and " error: rank 999" in log.read_text()
    assert run("inspect", model, "--log", tmp_path / "none" / "x.log").exit_code == 2
