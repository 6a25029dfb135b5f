"""The README and the guide keep their word: commands print what is shown, Python runs, links lead somewhere, tables are
the code's, and the fields of every file are those of a file just written.

The blocks of a page run from top to bottom in a folder where `make demo` has been. In shown output a line `...` stands
for one or more lines, and ` ...` at the end of a line for its rest.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.families import build
from kit.few_bits import write_quantised
from kit.hub_server import HubServer, Repo
from kit.real_models import ROOT, minilm_files

from ailora_tools import analyze, bitfit, convert, export, extract, initialize, merge, relink
from ailora_tools.cli.group import main
from ailora_tools.matrices import layouts
from ailora_tools.methods import METHODS, RULES
from ailora_tools.metrics.definitions import DEFINITIONS
from ailora_tools.targets.fused import FUSED_ROWS
from ailora_tools.targets.rows import LAYERS, Architecture, Slot, fused

GUIDE = ROOT / "examples" / "guide"
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
EVERY_PAGE = [ROOT / "README.md", *(page for top in ("examples", "reports") for page in (ROOT / top).rglob("*.md"))]
CUT = "..."
PROGRAM = {"README.md", "command_line.md"}  # pages whose commands run as processes of their own
SHOWN_ONLY = {"text", "bibtex"}  # languages of blocks that nothing can run or parse


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


# Blocks ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves."""
    root = tmp_path_factory.mktemp("made")
    environment = {**os.environ, "BIN": str(Path(sys.executable).parent), "DEMO": "demo"}
    subprocess.run(["sh", ROOT / "examples" / "demo.sh"], cwd=root, env=environment, check=True, capture_output=True)
    return root / "demo"


@pytest.mark.usefixtures("asked_apart")
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_blocks_run_in_order(
    page: Path, demo: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["sentence-transformers/all-MiniLM-L6-v2"] = Repo(tree(minilm_files()))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    (tmp_path / "demo").symlink_to(demo)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "console":
            for command, shown in sessions(text):
                printed = run(command, page).replace(f"{tmp_path}/", "").replace(f"{demo.parent}/", "")
                assert matches(lines(shown), lines(printed)), f"$ {command}\n{shown}\nis shown, printed is\n{printed}"
        elif language == "python":
            exec(compile(text, named(page), "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_block_is_unchecked(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for language, text in blocks(page):
        if language == "sh":
            for line in text.splitlines():
                assert re.search(rf"^{line.removeprefix('make ').split()[0]}:", makefile, re.MULTILINE), line
        elif language == "json":
            json.loads(text)
        elif language == "yaml":
            assert isinstance(yaml.safe_load(text), dict)
        else:
            # `py` is the worked example, which has a test of its own.
            assert language in {"console", "python", *SHOWN_ONLY} or (language, page.name) == ("py", "models.md")


def sessions(text: str) -> list[tuple[str, str]]:
    """(command, shown output) of a console block."""
    parts = re.split(r"^\$ (.*)$", text, flags=re.MULTILINE)
    assert not parts[0].strip(), f"output before the first command: {parts[0]}"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def run(command: str, page: Path) -> str:
    """What a command prints, in the order in which it does: as a program on the pages that begin with it."""
    program, *arguments = command.split()
    assert program == "ailora-tools"
    if page.name not in PROGRAM:
        told = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert told.exit_code == 0, f"$ {command}\n{told.output}"
        return told.output
    done = subprocess.run(
        [sys.executable, "-u", "-m", "ailora_tools", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    return done.stdout


def lines(text: str) -> list[str]:
    """Without blanks and what may differ: a commit, the digits of a rounding error, the number of companion files."""
    for varying, name in ((r"\b[0-9a-f]{40}\b", "COMMIT"), (r"\d\.\d+e-08", "1e-08"), (r"\b\d+ files,", "N files,")):
        text = re.sub(varying, name, text)
    found = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in found if line]


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether what is shown is what was printed, but for the cuts."""
    if not shown or not printed:
        return shown == printed
    if shown[0] == CUT:
        return any(matches(shown[1:], printed[at:]) for at in range(1, len(printed) + 1))
    beginning = shown[0].removesuffix(f" {CUT}")
    same = printed[0].startswith(beginning) if beginning != shown[0] else printed[0] == beginning
    return same and matches(shown[1:], printed[1:])


def test_a_cut_stands_for_lines_that_are_there() -> None:
    assert matches(["a", "...", "c"], ["a", "b", "b", "c"]) and matches(["a ..."], ["a b"])
    assert not matches(["a", "...", "c"], ["a", "c"]) and not matches(["a"], ["a", "b"])
    assert not matches(["a ..."], ["b"]) and not matches(["a", "b"], ["a"])


# Tables and links -----------------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_code() -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    tables = importlib.import_module("guide_tables")
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES[1:]}
    assert all(tables.written(text) == text for text in texts.values()), "run: python examples/guide_tables.py"
    assert all(f"<!-- {name} -->\n" in "".join(texts.values()) for name in tables.TABLES)
    assert "layoutlm, *layoutlmv2*, layoutlmv3" in texts["models.md"], "what is not proven is in italics"
    assert all(f"| `{name}`" in texts["methods.md"] for name in METHODS)
    assert all(f"- `{name}`: " in texts["methods.md"] for name in RULES)


def test_the_worked_example_is_a_row_of_the_table() -> None:
    row, family = (text for language, text in blocks(GUIDE / "models.md") if language == "py")
    names = {"Architecture": Architecture, "LAYERS": LAYERS, "Slot": Slot, "fused": fused, "layouts": layouts}
    assert eval(row, names) in FUSED_ROWS
    assert family.strip() in Path(inspect.getfile(build)).read_text()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@pytest.mark.parametrize("page", EVERY_PAGE, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("https://", "http://")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    for path in re.findall(r"`((?:ailora_tools|examples|reports|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Fields ---------------------------------------------------------------------------------------------------------------

TYPES = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "object": dict, "list": list}


def documented() -> dict[str, dict[str, str]]:
    """What the tables of files.md are about -> field -> type."""
    text = (GUIDE / "files.md").read_text(encoding="utf-8")
    tables = re.findall(r"<!-- fields of (.*?) -->\n((?:\|.*\n)+)", text)
    return {name: dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", rows, re.MULTILINE)) for name, rows in tables}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything that the tool writes, of small models."""
    root = tmp_path_factory.mktemp("written")
    tensors, heads = llama_tensors(), {"num_attention_heads": 4, "num_key_value_heads": 2}
    plain = write_checkpoint(root / "plain", tensors, **heads)
    damage = {"model.layers.1.self_attn.v_proj.weight": torch.full((24, 48), torch.nan)}
    damaged = write_checkpoint(root / "damaged", {**tensors, **damage}, **heads)
    biased = write_checkpoint(root / "biased", {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(48)})
    moved = ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
    changed = write_checkpoint(root / "changed", {**tensors, **{name: 2 * tensors[name] for name in moved}}, **heads)
    build("gpt2").save_pretrained(root / "gpt2")
    start = initialize(plain, rank=4, output=root / "start").folder
    initialize(plain, rank=4, output=root / "dora", dora=True)
    relink(initialize(plain, rank=4, output=root / "two", no_base=True).folder, "org/model@v1")
    initialize(plain, rank=4, output=root / "lora", method="lora")
    build("llama").save_pretrained(root / "llama")
    beside = {"modules_to_save": ["score"], "model_class": "LlamaForSequenceClassification", "num_labels": 2}
    initialize(root / "llama", rank=2, output=root / "beside", trainable_tokens="3", **beside)
    initialize(root / "gpt2", rank=2, output=root / "fused")
    initialize(plain, rank=2, grid="nf4", rounds=2, output=root / "grid")
    initialize(write_quantised(root / "few", "GPTQ 4")[0], rank=2, method="qalora", output=root / "pooled")
    bitfit(biased, root / "bitfit")
    convert(start / "ailora_init", start, root / "convert")
    convert(root / "lora" / "ailora_init", root / "lora", root / "fewer", reduce_intruders=0.75)
    merge(start, start / "ailora_init", root / "merge")
    extract(plain, changed, root / "extract", energy=0.9)
    export(start, "mlx", root / "export")
    analyze(damaged, suggest_targets=0.5, output=root / "skipped")
    against = [start, root / "lora" / "ailora_init", plain]
    analyze(plain, against=against, heads=True, suggest_ranks=2, suggest_targets=2, rank=2, output=root / "report")
    return root


@pytest.fixture(scope="module")
def written(folders: Path) -> dict[str, list[Any]]:
    """Name of a file -> what is in all of that name; a result also has its verb in the name."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folders.rglob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        name = f"{path.name}: ({document['verb']})" if path.name == "ailora-result.json" else path.name
        if path.parent.name != "export" or path.name == "ailora-result.json":  # its config is another trainer's
            found.setdefault(name, []).append(document)
    return found


def nodes(document: Any, path: str) -> Iterator[Any]:
    """What lies at a path such as `modules.[].part`: [] any item of a list, {} any value of an object."""
    step, _, rest = path.partition(".")
    if not step:
        if document is not None:
            yield document
    elif step in ("[]", "{}"):
        for item in document or [] if step == "[]" else document.values():
            yield from nodes(item, rest)
    elif document is not None:
        yield from nodes(document.get(step), rest)


@pytest.mark.parametrize("about", documented())
def test_a_file_has_the_fields_of_the_page(about: str, written: dict[str, list[Any]]) -> None:
    name, verb, path = re.fullmatch(r"([\w.-]+)(: \(\w+\))?(?::? (\S+))?", about).groups()  # type: ignore[union-attr]
    found = [node for document in written[name + (verb or "")] for node in nodes(document, path or "")]
    fields = documented()[about]
    optional = {field for field, kind in fields.items() if kind.endswith(", optional")}
    assert found, "no file has this"
    for node in found:
        assert fields.keys() - optional <= node.keys() <= fields.keys()
        for field, value in node.items():
            assert fits(value, fields[field]), f"{field} is {value!r}, the page says {fields[field]}"
    assert optional <= {field for node in found for field in node}


def fits(value: Any, kind: str) -> bool:
    words = kind.removesuffix(", optional").split(" or ")
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in words
    return any(isinstance(value, TYPES[word]) for word in words if word not in ("null", "boolean"))


def test_the_metrics_are_those_of_the_page(folders: Path, written: dict[str, list[Any]]) -> None:
    """They stand in generated tables; the columns of the CSV are the place of a matrix, and these."""
    keys = {of: [row.key for row in DEFINITIONS if row.of == of] for of in ("matrix", "change")}
    for row in (row for document in written["analysis.json"] for row in document["matrices"]):
        assert row["metrics"].keys() == set(keys["matrix"])
        assert all(change["metrics"].keys() == set(keys["change"]) for change in row["changes"])
    page = (GUIDE / "files.md").read_text(encoding="utf-8")
    place = re.findall(r"`(\w+)`", page.partition("## metrics.csv")[2])
    with open(folders / "report" / "metrics.csv", encoding="utf-8") as handle:
        assert next(csv.reader(handle)) == [*place, *keys["matrix"], *keys["change"]]


def test_every_promise_about_foreign_files_names_a_test() -> None:
    page = (GUIDE / "files.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\S+\.py)(?:::(\w+))?` \|$", page, re.MULTILINE)
    assert len(named) > 25
    for file, function in named:
        assert f"def {function or 'test_'}" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{function}"
