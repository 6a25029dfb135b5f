"""Write reports/trainers/README.md from the lines that `make trainers` collected beside it.

`python tests/trainers/table.py` puts the lines in order, adds what was read or not run, and writes the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "reports" / "trainers"
LINES = FOLDER / "lines.jsonl"
HEAD = """# In every trainer and every server

`make trainers` runs trainers and servers by their own commands, unpatched, on a CPU, each with the versions that
`tests/trainers/environments` pins, on the first layers of SmolLM2-135M, on all-MiniLM-L6-v2 or on a tiny random model.
`step 0` and the first loss belong to base and adapter as `init` wrote them; `convert` and `merge` tell how far those
models are from the trained one, and `changed` how far training led from the original: the largest difference of an
output over the largest output. What to write for each is in the guide: [trainers](../../examples/guide/trainers.md),
[servers](../../examples/guide/servers.md).

"""
COLUMNS = """| consumer | versions | state | what | outcome | numbers | date |
| --- | --- | --- | --- | --- | --- | --- |
"""
# Consumer, state, what was read.
OTHERS = (
    ("Unsloth", "not run", "needs a GPU; its loader takes an adapter's folder and `use_exact_model_name`"),
    ("vLLM", "read in code", "keys and alpha / r fit; `--max-lora-rank` must reach the converted rank, 2 r"),
    ("SGLang", "read in code", "one rank for all modules, as `adapter_config.json` says it"),
    ("TGI", "read in code", "stacks factors by type of layer: one rank, and every layer must have an adapter"),
    ("LoRAX", "read in code", "stacks factors by type of layer: one rank, and every layer must have an adapter"),
    ("Ollama", "read in code", "llama.cpp's engine and one alpha: one rank for all modules"),
)


def ordered(lines: Iterable[str]) -> list[dict[str, Any]]:
    """By consumer and by what was run, whichever process wrote first."""
    records = [json.loads(line) for line in lines if line.strip()]
    return sorted(records, key=lambda record: (record["consumer"].lower(), record["ran"]))


def table(records: Iterable[dict[str, Any]]) -> str:
    """The page."""
    ran = [row(one["consumer"], listed(one["versions"]), "runs here", one["ran"], *told(one)) for one in records]
    rest = [row(consumer, "", state, what, "", "", "") for consumer, state, what in OTHERS]
    return HEAD + COLUMNS + "".join(ran + rest)


def told(record: dict[str, Any]) -> tuple[str, str, str]:
    return record["outcome"], listed({name: digits(value) for name, value in record["numbers"].items()}), record["date"]


def digits(value: float) -> str:
    """Errors as powers of ten, losses as decimals."""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.5g}"


def listed(pairs: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs.items())


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


if __name__ == "__main__":
    found = ordered(LINES.read_text(encoding="utf-8").splitlines())
    LINES.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found), encoding="utf-8")
    (FOLDER / "README.md").write_text(table(found), encoding="utf-8")
    print(table(found))
