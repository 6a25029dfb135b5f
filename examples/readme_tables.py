"""Write the tables of methods and architectures in README.md anew from the code: `python examples/readme_tables.py`.

A model type in bold is proven by behaviour: the tests run a model of its class and see that exactly queries or values
change. Of the others the names are held against the modules of the class.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.families import FAMILIES, FUSED, build  # noqa: E402
from kit.peers import PEERS  # noqa: E402

from ailora_tools.methods import METHODS, RULES  # noqa: E402
from ailora_tools.targets.architectures import ARCHITECTURES  # noqa: E402
from ailora_tools.targets.rows import Architecture  # noqa: E402

STOP = "<!-- end -->"
ELSEWHERE = {"timm", "blip_vision_model"}  # proven in tests/models/test_vision.py


def proven_types() -> set[str]:
    """The model types whose classes tests/kit/families.py builds, towers of multimodal models included."""
    configs = [build(name).config for name in (*FAMILIES, *FUSED)]
    return {config.model_type for config in configs} | ELSEWHERE


def row(architecture: Architecture, proven: set[str]) -> str:
    """One line: family, model types, layout, proven by."""
    names = ", ".join(f"**{name}**" if name in proven else name for name in architecture.model_types)
    layout = next(iter(architecture.layouts.values()), None)
    text = layout.text.replace("|", "\\|") if layout else "separate"
    if layout is not None and not layout.proven:
        how = "nothing yet"
    else:
        how = "a running model" if proven & architecture.model_types.keys() else "names of the class"
    return f"| {architecture.family} | {names} | {text} | {how} |"


def table() -> str:
    """All rows, in the order of the code."""
    proven = proven_types()
    head = ["| family | model types | layout | proven by |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(row(architecture, proven) for architecture in ARCHITECTURES)])


def method_table() -> str:
    """One line a method; every one is proven by its formula (tests/surgery/), some by PEFT's own init too."""
    own = ", PEFT's own init"
    head = ["| method | W^Q | W^V | residual | needs data | paper | proven by |", "| --- " * 7 + "|"]
    rows = [
        f"| `{row.name}`{' (default)' if row.name == 'ailora' else ''} | {row.rules['q']} | {row.rules['v']} "
        f"| {'yes' if row.residual else 'no'} | no | {row.paper} "
        f"| formula, step 0{own if row.name in PEERS else ''} |"
        for row in METHODS.values()
    ]
    return "\n".join([*head, *rows])


def rule_list() -> str:
    """The rules for compositions."""
    return "\n".join(f"- `{rule.name}`: {rule.summary}" for rule in RULES.values())


def written(readme: str) -> str:
    """README.md with the tables as they are now."""
    study = (ROOT / "reports" / "study" / "minilm-full.md").read_text(encoding="utf-8").rstrip()
    parts = {"architectures": table(), "methods": method_table(), "rules": rule_list(), "study": study}
    for name, text in parts.items():
        start = f"<!-- {name} -->\n"
        readme = re.sub(f"{start}.*?{STOP}", lambda _, t=f"{start}{text}\n{STOP}": t, readme, flags=re.DOTALL)
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
