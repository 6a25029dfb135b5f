"""What is published: one version, a source package that is whole, a wheel that runs where nothing else of us is, the
workflows that make both, and how to cite and to report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import yaml
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.real_models import ROOT

from ailora_tools import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CITATION = yaml.safe_load((ROOT / ".github/CITATION.cff").read_text(encoding="utf-8"))
LITTER = re.compile(r"__pycache__|\.pyc$|\.(pytest|mypy|ruff)_cache|\.hypothesis|\.venv|\.safetensors$|\.partial")


def call(*words: object, **options: Any) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The source package of this tree, the wheel that is made of it alone, and an environment with that wheel in it.

    The libraries are those of this environment: a file of paths leads there, which brings no package of this tree, as
    an editable one is found by such a file itself and these are not followed twice."""
    root = tmp_path_factory.mktemp("release")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    pins = ["--only-binary", ":all:", "--constraint", ROOT / "constraints.txt"]
    call(*pip, "install", "--target", root / "tools", *pins, "hatchling")
    tools = {**os.environ, "PYTHONPATH": str(root / "tools")}
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", root / "dist", cwd=ROOT, env=tools)
    (source,) = (root / "dist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = archive.getnames()
        archive.extractall(root / "unpacked", filter="data")
    (tree,) = (root / "unpacked").iterdir()
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", root / "dist", cwd=tree, env=tools)
    (wheel,) = (root / "dist").glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", root / "empty")
    python = root / "empty" / "bin" / "python"
    call(*pip, "--python", python, "install", "--no-deps", wheel)
    (site,) = (root / "empty").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{Path(safetensors.__file__).parents[1]}\n")
    return SimpleNamespace(names=names, tree=tree, wheel=wheel, bin=python.parent, site=site)


def test_the_source_package_is_whole_and_clean(built: SimpleNamespace) -> None:
    names = {name.partition("/")[2] for name in built.names}
    for name in ("LICENSE", "README.md", "Makefile", "constraints.txt", "pyproject.toml", "PKG-INFO", ".ci/run",
                 "ailora_tools/py.typed", ".github/SECURITY.md", "reports/study/README.md"):  # fmt: skip
        assert name in names, name
    for top in ("ailora_tools", "tests", "examples"):
        here = {path.relative_to(ROOT).as_posix() for path in (ROOT / top).rglob("*.py")}
        assert {name for name in here if not LITTER.search(name)} <= names
    assert not [name for name in names if LITTER.search(name)]


def test_the_wheel_holds_the_package_and_nothing_else(built: SimpleNamespace) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"ailora_tools", f"ailora_tools-{__version__}.dist-info"}
    assert "ailora_tools/py.typed" in names and "ailora_tools/report/page.css" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    told = HeaderParser().parsestr(metadata)
    assert told["Version"] == __version__ and told["License-Expression"] == "Apache-2.0"
    assert "## What it promises" in metadata, "the README is the page of the package"


def test_the_wheel_runs_where_nothing_else_of_us_is(built: SimpleNamespace, tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = call(
        built.bin / "python", "-c", "import ailora_tools; print(ailora_tools.__file__)", cwd=tmp_path, env=clean
    )
    assert Path(where.strip()).is_relative_to(built.site)
    run = [built.bin / "ailora-tools"]
    assert call(*run, "--version", cwd=tmp_path, env=clean).split()[-1] == __version__
    assert "init" in call(*run, "--help", cwd=tmp_path, env=clean)
    write_checkpoint(tmp_path / "model", llama_tensors())
    made = json.loads(call(*run, "init", "model", "--rank", "2", "-o", "out", "--json", cwd=tmp_path, env=clean))
    assert made["modules"] and (tmp_path / "out" / "ailora_init" / "adapter_model.safetensors").exists()


def test_the_version_is_written_in_one_place() -> None:
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert f"version = {{{__version__}}}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n{__version__} " in (ROOT / "examples/guide/changes.md").read_text(encoding="utf-8"), "say what changed"


# Workflows ------------------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # `on` is no truth value here
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in load(path)["jobs"].values():
        yield from job.get("steps", [])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_pinned_and_may_do_little(path: Path) -> None:
    body = load(path)
    assert body["permissions"] == {"contents": "read"}
    for line in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8")):
        assert re.fullmatch(r"\./\.github/\S+|[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
        assert not line.startswith("./") or (ROOT / line).exists()
    for job in body["jobs"].values():
        assert "uses" in job or int(job["timeout-minutes"]) <= 90
        assert job.get("permissions", {}).keys() <= {"id-token", "attestations"}
    assert not re.search(r"secrets\.|password", path.read_text(encoding="utf-8"))


def test_the_tests_run_on_the_versions_that_are_promised() -> None:
    (job,) = load(ROOT / ".github/workflows/test.yml")["jobs"].values()
    proven = re.findall(r"Python :: (\d\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == proven and PROJECT["requires-python"] == f">={proven[0]}"
    assert [row for row in PROJECT["classifiers"] if "Operating" in row] == ["Operating System :: POSIX :: Linux"]
    assert job["runs-on"].startswith("ubuntu") and job["steps"][-1] == {"run": "make test"}


def test_only_a_release_that_was_tested_is_published_and_by_no_token() -> None:
    jobs = load(ROOT / ".github/workflows/release.yml")["jobs"]
    assert jobs["publish"]["needs"] == ["test", "build"] and jobs["publish"]["permissions"]["id-token"] == "write"
    *_, attest, publish = jobs["publish"]["steps"]
    assert "attest-build-provenance" in attest["uses"] and "gh-action-pypi-publish" in publish["uses"]
    assert "with" not in publish, "nothing but trusted publishing"


@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), ("v0.0.1", 1), (__version__, 1)])
def test_a_tag_that_is_not_the_version_stops_the_release(tag: str, code: int) -> None:
    (step,) = (step for step in steps(ROOT / ".github/workflows/release.yml") if "tag" in step.get("name", ""))
    place = {"GITHUB_REF_NAME": tag, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", "-c", step["run"]], cwd=ROOT, env=place, check=False).returncode == code


# Citation and security ------------------------------------------------------------------------------------------------


def test_the_citation_is_of_the_format_and_says_what_the_readme_says() -> None:
    assert CITATION["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= CITATION.keys()
    assert CITATION["title"] == PROJECT["name"] and CITATION["license"] == PROJECT["license"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (paper,) = CITATION["references"]
    told = " and ".join(f"{who['family-names']}, {who['given-names']}" for who in paper["authors"])
    assert f"author = {{{told}}}" in readme and f"year = {{{paper['year']}}}" in readme
    assert f"title  = {{{paper['title'].replace('AILoRA', '{AILoRA}')}}}" in readme
    (mark,) = paper["identifiers"]
    assert f"eprint = {{{mark['value'].removeprefix('arXiv:')}}}" in readme


def test_security_leads_to_the_guide() -> None:
    page = ROOT / ".github/SECURITY.md"
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert links and all((page.parent / link).resolve().exists() for link in links)
