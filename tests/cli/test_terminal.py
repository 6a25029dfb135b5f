"""What reaches a terminal: no control character out of a name, and no error for a character it lacks."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, write_checkpoint
from rich.text import Text

from ailora_tools.cli import screens
from ailora_tools.cli.group import main
from ailora_tools.display.console import Console
from ailora_tools.display.text import OBEYED, visible
from ailora_tools.errors import AiloraError

EVIL = "\x1b[2J\x1b[31mx\x9b31m\x07\u202eholds\nmodel holds\r[bold]b[/x]:smile:\x7f\udce9"
SHOWN = r"\x1b[2J\x1b[31mx\x9b31m\x07\u202eholds\x0amodel holds\x0d[bold]b[/x]:smile:\x7f\xe9"


def test_every_control_character_is_shown() -> None:
    assert visible(EVIL) == SHOWN
    plain = "model.layers.0 – W^Q ✔ 模型 é 👩‍🔬 \\x1b"
    assert visible(plain) == plain
    assert not any(OBEYED.search(visible(chr(code))) for code in range(0x3000))


def drawn(terminal_on: bool) -> str:
    """Every way in which screens show names, on a console that takes itself for a terminal or not."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal_on, width=300, markup=False, emoji=False)
    grid = screens.table("name", "value")
    grid.add_row(EVIL, Text(EVIL, style="bold", overflow="fold"))
    for shown in (EVIL, Text.assemble(("error: ", "bold red"), EVIL), grid):
        console.print(shown)
    return file.getvalue()


@pytest.mark.parametrize("terminal_on", [True, False])
def test_names_on_a_console(terminal_on: bool) -> None:
    text = drawn(terminal_on)
    for own in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[1;31m"):  # rich's own styles
        text = text.replace(own, "")
    assert not any(OBEYED.search(line) for line in text.split("\n"))
    whole = SHOWN.replace(r"\x07", "").replace(r"\x0d", "")  # rich itself drops these
    assert text.count(whole) == 2, "a line of its own is whole; a cell of a table is folded"


def hostile(folder: Path) -> Path:
    tensors = {f"\x1b[2J\x9bx.layers.0.self_attn.{r}_proj.weight": torch.randn(8, 8) for r in "qv"}
    return write_checkpoint(folder, tensors, model_type="\x1b[31m[/x]")


def test_a_real_terminal(tmp_path: Path) -> None:
    folder = hostile(tmp_path / "mo\x1b]0;x\x07del")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "ailora_tools", "inspect", str(folder)]
    done = subprocess.run(
        command, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm", "COLUMNS": "300"}, timeout=120
    )
    os.close(follower)
    text = os.read(leader, 1 << 20).decode()
    os.close(leader)
    assert done.returncode == 0 and r"\x1b[2J\x9bx.layers" in text and r"mo\x1b]0;xdel" in text
    assert "\x1b[2J" not in text and "\x1b]" not in text and "\x1b[31m" not in text and "\x9b" not in text


def test_errors_notices_and_json(tmp_path: Path) -> None:
    folder = hostile(tmp_path / "model")
    done = CliRunner().invoke(main, ["inspect", str(folder), "--json"])
    assert done.exit_code == 0
    assert not any(OBEYED.search(line) for line in done.stdout.split("\n"))
    assert json.loads(done.stdout)["targets"][0]["tensor"].startswith("\x1b[2J\x9bx")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / EVIL.replace("/", "").replace("\udce9", ""))])
    assert done.exit_code == 1 and r"\x1b[2J" in done.stderr and "\x1b" not in done.stderr
    done = CliRunner().invoke(main, ["inspect", str(folder), "more\x1b[2J"])
    assert done.exit_code == 2 and r"more\x1b[2J" in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("encoding", "command"),
    [("latin-1", "inspect"), ("ascii", "json"), ("cp1252", "help"), ("latin-1", "analyze"), ("ascii", "no model")],
)
def test_a_terminal_that_is_not_utf_8(tmp_path: Path, encoding: str, command: str) -> None:
    """In turn, in processes of their own; every command in every encoding is in test_encodings."""
    folder = write_checkpoint(tmp_path / "modèle", llama_tensors())
    arguments = {
        "inspect": ["inspect", str(folder)], "json": ["inspect", str(folder), "--json"], "help": ["--help"],
        "analyze": ["analyze", str(folder), "-r", "2", "-o", str(tmp_path / "report")],
        "no model": ["inspect", "模型/none"],
    }[command]  # fmt: skip
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    words = [sys.executable, "-m", "ailora_tools", *arguments]
    done = subprocess.run(words, capture_output=True, env=environment, timeout=120)
    assert done.returncode == (command == "no model") and b"Traceback" not in done.stderr
    if command == "json":
        assert json.loads(done.stdout.decode(encoding))["model"] == str(folder)


def test_the_error_of_a_system_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ailora_tools.verbs import inspect

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "x\x1b"))

    monkeypatch.setattr(inspect, "inspect_checkpoint", refuse)
    done = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert done.exit_code == AiloraError.exit_code
    assert done.stderr.startswith("error: ") and r"x\x1b: Permission denied." in done.stderr
