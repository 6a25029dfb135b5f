"""`python -m examples.study minilm MODEL WORK`: the runs (see run.py for the options), then page, table and picture."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, here and in the workers
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

if __name__ == "__main__":
    import report
    import run
    from screenshot import picture

    lines = run.main()
    report.write(lines)
    if not picture(lines.with_suffix(".html"), lines.with_suffix(".png"), whole=True):
        print("no Chromium is installed: no picture", file=sys.stderr)
