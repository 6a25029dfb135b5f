"""The examples that no other test runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.real_models import ROOT, minilm

from ailora_tools import analyze


def run(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_tour_names_files_that_are_there() -> None:
    for readme in (ROOT / "examples" / "README.md", ROOT / "examples" / "trainers" / "README.md"):
        for link in re.findall(r"\]\(([^)]+)\)", readme.read_text()):
            assert (readme.parent / link).exists(), link


def test_fidelity_is_measured(tmp_path: Path) -> None:
    printed = run("examples/fidelity.py", minilm(tmp_path / "minilm"))
    row = next(line for line in printed.splitlines() if "minilm" in line.lower())
    assert "|" in row and re.search(r"\d", row)


def test_a_picture_of_a_report(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium on this machine")
    analyze(minilm(tmp_path / "minilm"), layers="0", output=tmp_path / "report")
    run("examples/screenshot.py", tmp_path / "report" / "report.html", tmp_path / "page.png", "--height", "600")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
