"""Every verb where the output is no UTF-8, as in a pipe on Windows: plain characters, and never an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kit.adapters import prepare

from ailora_tools import analyze, initialize
from ailora_tools.cli.group import main

COMMANDS = {
    "inspect": "inspect model",
    "analyze": "analyze model --against model -r 2 --overwrite -o report",
    "init": "init model -r 2 --overwrite -o start",
    "init, dry": "init model -r 2 --dry-run -o none",
    "bitfit": "init model --method bitfit --overwrite -o biases",
    "verify": "verify init",
    "verify, broken": "verify broken",
    "convert": "convert trained --init init -r 1 --overwrite -o plain",
    "merge": "merge init trained --overwrite -o merged",
    "export": "export trained --to diffusers --component text_encoder --overwrite -o exported",
    "report": "report report/analysis.json",
    "help": "init --help",
    "verbs": "--help",
    "wrong usage": "init model --rank é",
    "an error": "inspect modèle/模型",
}
CODES = {"verify, broken": 3, "wrong usage": 2, "an error": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("modèle")
    prepare("bert with a head", root)
    initialize(root / "model", 2, output=root / "start")
    analyze(root / "model", rank=2, output=root / "report")
    shutil.copytree(root / "start", root / "broken")
    (root / "broken" / "README.md").write_text("changed")
    return root


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_plain_characters_and_no_error(name: str, encoding: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = run(COMMANDS[name], encoding)
    shown = done.stdout_bytes.decode(encoding), done.stderr_bytes.decode(encoding, "replace")  # click's own are UTF-8
    assert done.exit_code == CODES.get(name, 0) and type(done.exception) in (SystemExit, type(None)), shown
    marks = "".join(shown).replace(r"\u6a21\u578b", "").replace(r"mod\u00e8le", "")  # names, and names in code
    assert any(shown) and r"\u" not in marks, shown


@pytest.mark.parametrize("name", ["analyze", "init", "verify", "convert"])
def test_json_can_be_read(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert "modèle" in str(json.loads(run(f"{COMMANDS[name]} --json", "ascii").stdout_bytes.decode("ascii")))


def run(command: str, encoding: str) -> Result:
    return CliRunner(charset=encoding).invoke(main, command.split())


def test_a_real_pipe(folder: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "ailora_tools", "verify", "init"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=folder)
    assert done.returncode == 0 and b"+  recombination" in done.stdout
