"""With which versions of transformers the rows hold: `python tests/versions/table.py`, by `make versions`.

The last release of every minor version is installed without torch in `.venv-versions/VERSION`, beside the packages of
this environment; what that version wants otherwise comes with it. Its classes are asked what `init` would ask of them.
The answers are what `ailora_tools/targets/proven.py` states; where they are not, its table is printed as it should be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

from packaging.requirements import Requirement

from ailora_tools.targets.proven import PROVEN, VERSIONS

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-versions"
HERE = Path(__file__).parent
# Some versions import timm for a class that knows it, and timm wants torchvision, which the tests do without.
_WITHOUT_TIMM = "import runpy, sys; sys.modules['timm'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
EVERYWHERE = {"timm"}  # its classes are of another library, whatever transformers is installed


def install(minor: str) -> Path | None:
    """The folder with that version and whatever it wants that this environment lacks; None for the one that is here."""
    if _installed("transformers").startswith(f"{minor}."):
        return None
    folder = HOME / minor
    if not (folder / ".done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        wanted, before = [f"transformers=={minor}.*"], [""]
        while wanted and wanted != before:
            _pip(folder, wanted)
            wanted, before = _unmet(distributions(path=[str(folder)])), wanted
        (folder / ".done").touch()
    return folder


def _pip(folder: Path, wanted: list[str]) -> None:
    """The constraints of this environment do not hold there."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    quiet = ("-qq", "--disable-pip-version-check", "--only-binary", ":all:", "--no-deps", "--upgrade")
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(folder), *wanted]
    subprocess.run(command, check=True, env=free)


def _unmet(installed: Iterable[Distribution]) -> list[str]:
    there = {package.metadata["Name"].lower().replace("_", "-"): package for package in installed}
    wanted: dict[str, None] = {}
    for text in [text for package in there.values() for text in package.requires or ()]:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            name = need.name.lower().replace("_", "-")
            found = there[name].version if name in there else _installed(name)
            if not found or not need.specifier.contains(found, prereleases=True):
                wanted[f"{need.name}{need.specifier}"] = None
    return list(wanted)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def run(script: str, *words: Path, first: Path | None = None) -> None:
    paths = [*([first] if first else []), ROOT, ROOT / "tests"]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", _WITHOUT_TIMM, str(HERE / script), *map(str, words)]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)


def held(answers: Mapping[str, Any]) -> set[str]:
    """The types all of whose classes are as planned."""
    return EVERYWHERE | {kind for kind, classes in answers.items() if not any(classes.values())}


def ranges(found: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """From which version to which -> the types that hold in all of them. found: oldest version first."""
    groups: dict[str, list[str]] = {}
    for kind in sorted(set().union(*found.values())):
        holds = {minor: kind in kinds for minor, kinds in found.items()}
        runs = [list(run) for there, run in groupby(holds, holds.__getitem__) if there]
        groups.setdefault(" ".join(f"{run[0]}-{run[-1]}" for run in runs), []).append(kind)
    places = list(found)
    return dict(sorted(groups.items(), key=lambda item: [places.index(end) for end in re.split("[- ]", item[0])]))


def told(groups: Mapping[str, list[str]]) -> Iterator[str]:
    """The table as `proven.py` has it."""
    for stated, kinds in groups.items():
        *lines, last = (f'"{line}' for line in wrap(" ".join(kinds), 105, break_on_hyphens=False))
        yield "\n        ".join([f'    "{stated}":', *(f'{line} "' for line in lines), f'{last}",'])


def main() -> int:
    HOME.mkdir(exist_ok=True)
    asked = HOME / "questions.json"
    run("questions.py", asked)
    found = {}
    for minor in VERSIONS:
        path = HOME / f"answers-{minor}.json"
        run("answers.py", asked, path, first=install(minor))
        found[minor] = held(json.loads(path.read_text())["answers"])
        print(f"transformers {minor}: {len(found[minor])} types hold; differences in {path}", flush=True)
    groups = ranges(found)
    if {stated: " ".join(kinds) for stated, kinds in groups.items()} == PROVEN:
        return 0
    print("ailora_tools/targets/proven.py states something else; its table is to be:", *told(groups), sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
