"""`python -m examples.study minilm MODEL WORK`: the runs (see run.py for the options), then page and table."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    import report
    import run

    report.write(run.main())
