"""Write the table of architectures in README.md anew from the code: `python examples/readme_tables.py`.

A model type in bold is proven by behaviour: the tests run a model of its class and see that exactly queries or values
change. Of the others the names are held against the modules of the class.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from families import FAMILIES, FUSED, build  # noqa: E402

from ailora_tools.targets.architectures import ARCHITECTURES  # noqa: E402
from ailora_tools.targets.rows import Architecture  # noqa: E402

START, STOP = "<!-- architectures -->\n", "<!-- end -->"
ELSEWHERE = {"timm", "blip_vision_model"}  # proven in tests/test_vision.py


def proven_types() -> set[str]:
    """The model types whose classes tests/families.py builds, towers of multimodal models included."""
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


def written(readme: str) -> str:
    """README.md with the table as it is now."""
    return re.sub(f"{START}.*?{STOP}", lambda _: f"{START}{table()}\n{STOP}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
