"""Texts that the page carries compressed: plotly.js and the data, a third of their size even in base64.

The page unpacks them with the browser's own DecompressionStream, which needs no request and works from a file. Where
a browser lacks it, or scripts are off, the still pictures stay.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any


def packed(text: str) -> str:
    """Gzip in base64: no character of it means anything to an HTML parser, so that hostile names stay inside. A byte of
    a name that is no UTF-8 is escaped, as JSON writes it."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 9, mtime=0)).decode("ascii")


def unpacked(page: str) -> dict[str, Any]:
    """The data that a page carries, as the page reads them: figures, overviews, document and csv."""
    found = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page)
    if found is None:
        raise ValueError("no page of ailora-tools: it carries no data")
    return dict(json.loads(gzip.decompress(base64.b64decode(found[1]))))


@contextmanager
def packing_plotly() -> Iterator[None]:
    """Compress plotly.js beside what is done here, a quarter of a second that the page then does not take."""
    with ThreadPoolExecutor(1, "page") as beside:
        beside.submit(packed_plotly)  # what goes wrong there goes wrong again where it is wanted
        yield


@lru_cache(maxsize=1)
def packed_plotly() -> str:
    """`plotly_script` as a page carries it."""
    return packed(plotly_script())


def plotly_script() -> str:
    """plotly.js as the installed plotly package carries it, without importing the package."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:  # a dependency, so only a broken installation lacks it
        raise ModuleNotFoundError("plotly is not installed")
    return (Path(next(iter(spec.submodule_search_locations))) / "package_data" / "plotly.min.js").read_text("utf-8")
