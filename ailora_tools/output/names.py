"""Names of the files and folders that the tool writes, each spelt once."""

from __future__ import annotations

ADAPTER_FOLDER = "ailora_init"  # never beside config.json: transformers would load an adapter from there
OFFSET_FOLDER = "ailora_offset"  # a frozen adapter with -B A, where the base is the untouched original
MANIFEST = "ailora.json"
RESULT = "ailora-result.json"  # of `convert`, `merge`, `export` and `bitfit`: what was made from what
CARD = "README.md"
LR_GROUPS = "lr_groups.json"
BIAS_LIST = "bitfit.json"
ANALYSIS = "analysis.json"
METRICS = "metrics.csv"
REPORT = "report.html"
COMPARISON = "comparison.html"  # of several analyses
INDEX = "index.html"  # of a folder of reports
RANKS = "ranks.json"
