"""The command line: help that is fast and true, clean JSON, exit codes, and what an interruption leaves."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.interruption import PAUSING, press_ctrl_c, start

from ailora_tools.cli.group import main
from ailora_tools.methods import METHODS, RULES

VERBS = sorted(main.commands)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def process(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ailora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama_tensors(), shards=2)


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option_and_ends_with_an_example_that_parses(verb: str) -> None:
    text = run(verb, "--help").stdout
    command = main.commands[verb]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.opts[-1] in text
    examples = re.findall(rf"^  +ailora-tools ({verb} .*)$", text, re.MULTILINE)
    assert examples and text.rstrip().endswith(examples[-1]) and "\nOptions:" not in text
    for example in examples:
        command.make_context(verb, shlex.split(example)[1:])


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom ailora_tools.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "arguments", ["analyze x", "init x --rank 2", "verify x", "convert x --init x -o y", "merge x x -o y"]
)
def test_something_is_on_the_screen_before_torch_is_loaded(arguments: str) -> None:
    code = (
        "import sys\nfrom ailora_tools.cli import main\nfrom ailora_tools.display import bar\n"
        "bar.drawn = lambda **_: sys.exit(10 + ('torch' in sys.modules))\n"
        f"main({arguments.split()!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 10


def test_the_program_does_not_look_through_what_torch_has_made_and_the_library_leaves_that_to_its_user() -> None:
    code = (
        "import atexit, gc\nfrom ailora_tools.cli import main\n"
        "whole = lambda: gc.get_stats()[-1]['collections']\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 100_000))\n"
        "usual = gc.get_threshold()\n"
        "main(['--version'], standalone_mode=False) if {program} else None\n"
        "before = whole()\nimport torch\nprint(gc.get_threshold() == usual, whole() - before)"
    )
    told = {}
    for program in (True, False):
        command = [sys.executable, "-c", code.format(program=program)]
        told[program] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-3:]
    assert told[True][0] == "False" and told[True][2] == "True"
    assert told[False][0] == "True" and told[False][2] == "False"
    assert int(told[True][1]) < int(told[False][1])


def test_help_lists_every_method() -> None:
    text = re.sub(r"\s+", " ", run("init", "--help").stdout)
    assert all(f" {row.name} {row.summary}" in text for row in (*METHODS.values(), *RULES.values()))


def test_version_is_the_packages() -> None:
    assert re.fullmatch(r"ailora-tools, version \d+\.\d+\.\d+\n", run("--version").stdout)


def test_json_is_one_document_and_nothing_else(model: Path, tmp_path: Path) -> None:
    inspected = process("inspect", model, "--json")
    found = json.loads(inspected.stdout)
    assert (len(found["targets"]), found["model_type"], inspected.stderr) == (4, "llama", "")
    written = json.loads(process("init", model, "--rank", 4, "-o", tmp_path / "out", "--json").stdout)
    assert written["folder"] == str(tmp_path / "out") and len(written["modules"]) == 4
    assert json.loads(process("verify", tmp_path / "out", "--json").stdout)["holds"] is True


def test_notices_go_to_stderr_unless_quiet(tmp_path: Path) -> None:
    tensors = llama_tensors(layers=2)
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    model = write_checkpoint(tmp_path / "model", tensors)
    for command in (["inspect", model], ["init", model, "--rank", 2, "--dry-run"]):
        loud, quiet = process(*command), process(*command, "--quiet")
        assert "note: no W^V of their own in layers 1" in loud.stderr and "note" not in loud.stdout
        assert quiet.stderr == "" and quiet.stdout == loud.stdout


def test_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    result = process("init", model, "--rank", 4, "-o", tmp_path / "out", "--dry-run")
    assert "would be written" in result.stdout and tree(tmp_path) == before


def test_model_defaults_to_here_and_the_output_to_its_name(model: Path, tmp_path: Path) -> None:
    here = process("init", "--rank", 4, "-o", "../from-here", cwd=model)
    assert here.returncode == 0, here.stderr
    named = process("init", model, "--rank", 4, "--method", "pissa", cwd=tmp_path)
    assert named.returncode == 0 and (tmp_path / "model-pissa-r4" / "ailora.json").is_file()
    beside = process("init", "--rank", 4, cwd=model)
    assert beside.returncode == 0 and (tmp_path / "model-ailora-r4" / "ailora.json").is_file()
    assert "the output goes beside the model" in beside.stderr
    report = process("analyze", ".", "--rank", 2, cwd=model)
    assert report.returncode == 0 and (tmp_path / "reports" / "model" / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["init", ".", "--rank", "four"],
        ["init", ".", "--rank", "4", "--method", "magic"],
        ["init", ".", "--rank", "4", "--roles", "q,x"],
        ["init", ".", "--rank", "4", "--rounding", "up"],
        ["inspect"],
        ["frobnicate"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and "Usage" in result.stderr


def test_verify_says_3_when_it_does_not_hold(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("init", model, "--rank", 4, "-o", out).exit_code == 0
    assert run("verify", out).exit_code == 0
    assert "compared with the source" in run("verify", out).stdout
    (out / "tokenizer.json").write_text("{}")
    result = run("verify", out)
    assert result.exit_code == 3 and "tokenizer.json has 2 bytes" in result.stdout and "does not hold" in result.stdout
    (out / "ailora.json").write_text("{}")
    assert run("verify", out).exit_code == 3
    assert run("verify", tmp_path / "nowhere").exit_code == 1


def test_markup_in_names_is_shown_as_it_is(tmp_path: Path) -> None:
    """Names of tensors and folders are not markup of the terminal."""
    model = write_checkpoint(tmp_path / "[red]model[/red]", llama_tensors())
    assert "[red]model[/red]" in run("inspect", model).stdout
    assert run("inspect", tmp_path / "[/bold]").exit_code == 1


def test_an_interrupted_run_exits_130_and_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    arguments = ["init", str(model), "--rank", "8", "-o", str(tmp_path / "out")]
    child = start([sys.executable, "-c", PAUSING, *arguments])
    assert child.stdout is not None and child.stdout.readline() == "stored\n"
    errors = press_ctrl_c(child)
    assert child.returncode == 130 and "--resume" in errors and "Traceback" not in errors
    assert (tmp_path / "out.partial" / "journal.jsonl").exists() and not (tmp_path / "out").exists()
    assert process(*arguments, "--resume").returncode == 0
    assert run("verify", tmp_path / "out").exit_code == 0
