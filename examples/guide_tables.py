"""Write the guide's tables, those between `<!-- name -->` and `<!-- end -->`, anew: `python examples/guide_tables.py`.

Every model type is proven by behaviour, but those in italics: the tests run a tiny model of its class and see that
exactly queries or values change.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.peers import PEERS  # noqa: E402

from ailora_tools.methods import METHODS, RULES  # noqa: E402
from ailora_tools.metrics.definitions import DEFINITIONS, Definition  # noqa: E402
from ailora_tools.targets.architectures import ARCHITECTURES  # noqa: E402
from ailora_tools.targets.rows import Architecture  # noqa: E402

STOP = "<!-- end -->"


def row(architecture: Architecture) -> str:
    """One line: family, model types, layout, proven by."""
    types = architecture.model_types
    names = ", ".join(name if architecture.proves(name) else f"*{name}*" for name in types)
    layout = next(iter(architecture.layouts.values()), None)
    text = layout.text.replace("|", "\\|") if layout else "separate"
    how = "running models" if any(map(architecture.proves, types)) else "nothing yet"
    return f"| {architecture.family} | {names} | {text} | {how} |"


def table() -> str:
    """All rows, in the order of the code."""
    head = ["| family | model types | layout | proven by |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *map(row, ARCHITECTURES)])


def method_table() -> str:
    """One line a method; every one is proven by its formula (tests/surgery/), some by PEFT's own init too."""
    own = ", PEFT's own init"
    head = ["| method | W^Q | W^V | others | residual | needs data | paper | proven by |", "| --- " * 8 + "|"]
    rows = [
        f"| `{row.name}`{' (default)' if row.name == 'ailora' else ''} | {row.rule('q').name} | {row.rule('v').name} "
        f"| {row.every or 'none'} "
        f"| {'yes' if row.residual else 'no'} | no | {row.paper} "
        f"| formula, step 0{own if row.name in PEERS else ''} |"
        for row in METHODS.values()
    ]
    return "\n".join([*head, *rows])


def rule_list() -> str:
    """The rules for compositions."""
    return "\n".join(f"- `{rule.name}`: {rule.summary}" for rule in RULES.values())


def metric_table(of: str) -> str:
    """What an analysis states of a matrix, or of a change: key in analysis.json, formula, meaning."""
    head = ["| field | formula | meaning |", "| --- | --- | --- |"]
    rows = [row for row in DEFINITIONS if row.of == of]
    return "\n".join([*head, *map(_metric_row, rows)])


def _metric_row(row: Definition) -> str:
    cells = (f"`{row.key}`", row.formula, f"{row.label}. {row.meaning}".strip())
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


TABLES: dict[str, Callable[[], str]] = {
    "architectures": table,
    "methods": method_table,
    "rules": rule_list,
    "metrics": lambda: metric_table("matrix"),
    "change metrics": lambda: metric_table("change"),
}


def written(page: str) -> str:
    """A page with its tables as they are now."""
    for name, text in TABLES.items():
        start = f"<!-- {name} -->\n"
        if start in page:
            fresh = f"{start}{text()}\n{STOP}"
            page = re.sub(f"{start}.*?{STOP}", lambda _, fresh=fresh: fresh, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    for path in (ROOT / "README.md", *sorted((ROOT / "examples" / "guide").glob("*.md"))):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
