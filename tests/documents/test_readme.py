"""The README keeps its word: its commands run and print what it shows, its Python runs, its table is the code's."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.checkpoints import tree
from kit.hub_server import HubServer, Repo
from kit.real_models import ROOT, minilm

from ailora_tools.matrices import layouts
from ailora_tools.methods import METHODS, RULES
from ailora_tools.targets.fused import FUSED_ROWS
from ailora_tools.targets.rows import Architecture, Slot, fused

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `demo/minilm` in it, as `make demo` leaves it."""
    root = tmp_path_factory.mktemp("readme")
    (root / "demo").mkdir()
    minilm(root / "demo" / "minilm")
    return root


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def sessions() -> list[tuple[str, str]]:
    """(command, shown output) of the console blocks."""
    parts = re.split(r"^\$ (.*)$", "".join(blocks("console")), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def words(text: str) -> list[str]:
    """Lines without blanks; a commit is any commit."""
    lines = (re.sub(r"\b[0-9a-f]{40}\b", "COMMIT", re.sub(r"\s+", " ", line)).strip() for line in text.splitlines())
    return [line for line in lines if line]


def test_the_sessions_are_what_the_tool_prints(place: Path, hub: HubServer) -> None:
    hub.repos["sentence-transformers/all-MiniLM-L6-v2"] = Repo(tree(place / "demo" / "minilm"))
    for command, shown in sessions():
        program, *arguments = command.split()
        assert program == "ailora-tools"
        done = subprocess.run(
            [sys.executable, "-m", "ailora_tools", *arguments], cwd=place, capture_output=True, text=True, check=True
        )
        printed = "\n".join(words((done.stdout + done.stderr).replace(f"{place}/", "")))
        for line in words(shown):
            # Sizes of the files around the weights and the last digit of an error may differ between versions.
            pattern = re.sub(r"\d\\\.\d+e\\-08", r"\\d\\.\\d+e-08", re.escape(line))
            pattern = re.sub(r"^✔\\ files\\ \d+", r"✔\\ files\\ \\d+", pattern)
            assert re.search(rf"^{pattern}$", printed, re.MULTILINE), f"{line!r} not in:\n{printed}"


def test_every_python_block_runs_in_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    scope: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert Path("minilm-r8/ailora_init/adapter_config.json").is_file()
    shutil.rmtree("minilm-r8")


def test_the_tables_are_those_of_the_code() -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    tables = importlib.import_module("readme_tables")
    assert tables.written(README) == README, "run: python examples/readme_tables.py"
    assert len(tables.proven_types()) >= 45
    assert all(f"| `{name}`" in README for name in METHODS) and all(f"- `{name}`: " in README for name in RULES)


def test_the_worked_example_is_a_row_of_the_table() -> None:
    row, family = blocks("py")
    names = {"Architecture": Architecture, "Slot": Slot, "fused": fused, "layouts": layouts}
    assert eval(row, names) in FUSED_ROWS
    assert family.strip() in (ROOT / "tests" / "kit" / "families.py").read_text()


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in blocks("sh")[0].splitlines():
        assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)
