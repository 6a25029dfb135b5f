"""The notebook: its cells run in order, and what is kept of them is what they show."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit.real_models import ROOT, minilm

NOTEBOOK = ROOT / "examples" / "notebook" / "analysis.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def shown(code: str, scope: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line, which a notebook would show."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), scope)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), scope) if isinstance(last, ast.Expr) else None


def plain(html: str) -> str:
    """Text alone, with numbers to three digits left out: the last digit may differ from machine to machine."""
    return re.sub(r"\d[\d.e+-]*", "0", re.sub(r"<[^>]*>", " ", html))


def test_the_cells_run_and_show_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minilm(tmp_path / "demo" / "minilm")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    kept = [cell["outputs"] for cell in CELLS if cell["cell_type"] == "code"]
    for code, outputs in zip(CODE, kept, strict=True):
        value = shown(code, scope)
        (output,) = outputs
        if "text/html" in output["data"]:
            found = value._repr_html_().replace(f"{tmp_path.resolve()}/", "")
            assert plain(found).split() == plain("".join(output["data"]["text/html"])).split()
        else:
            drawn = output["data"]["application/vnd.plotly.v1+json"]
            assert len(drawn["data"]) == len(value.data)


def test_nothing_of_a_machine_is_kept() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "/tmp/" not in text and "/home/" not in text and len(text) < 200_000
    assert not any(output["output_type"] == "stream" for cell in CELLS for output in cell.get("outputs", ()))


def test_it_runs_headless(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    minilm(tmp_path / "demo" / "minilm")
    copy = Path(shutil.copytree(NOTEBOOK.parent, tmp_path / "notebook"))
    done = subprocess.run([sys.executable, copy / "run.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "spectra-v" in (copy / "analysis.ipynb").read_text()
