"""`report` on several analyses, and on a folder of them: one page that compares, one that lists."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from kit.browser import SIZES, Page

from ailora_tools import render_report
from ailora_tools.report.packed import unpacked

COMPARED = ("minilm", "rxnfp", "whisper", "deep")


@pytest.fixture(scope="module")
def folder(reports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of four models beside each other."""
    root = tmp_path_factory.mktemp("several")
    for name in COMPARED:
        shutil.copytree(reports[name].parent, root / name)
    return root


@pytest.mark.parametrize("size", SIZES)
def test_several_models_on_one_page(browser: Any, folder: Path, size: str) -> None:
    written = render_report([folder / name for name in COMPARED])
    assert written == folder / "comparison.html"
    page = Page(browser, written, size)
    page.draw_all()
    assert page.evaluate("document.documentElement.scrollWidth") <= page.width
    documents = [json.loads((folder / name / "analysis.json").read_text()) for name in COMPARED]
    data = unpacked(written.read_text(encoding="utf-8"))
    names = [line[0] for line in data["figures"]["map-models"]["data"][0]["meta"]]
    whisper = [f"whisper {stack}" for stack in ("encoder", "decoder", "decoder cross")]
    assert names == 2 * ["minilm", "base", *whisper, "deep"]
    assert len(page.query_selector_all("#table tbody tr")) == 2 * len(COMPARED)
    page.select_option('select[data-map="models"]', "frobenius_norm")
    for document, name in zip(documents, ("minilm", "base", "whisper", "deep"), strict=True):
        values = [row["metrics"]["effective_rank_share"] for row in document["matrices"] if row["role"] == "v"]
        cell = page.query_selector(f'#table tr:has(th[data-value="{name} v"]) td')
        assert float(cell.get_attribute("data-value")) == pytest.approx(median(values)), name
    assert page.faults == []


def test_a_folder_of_reports_is_listed_with_links_that_lead_there(browser: Any, folder: Path) -> None:
    written = render_report(folder)
    assert written == folder / "index.html" and written.stat().st_size < 100_000
    page = Page(browser, written)
    assert page.text_content("#shown") == "4 of 4"
    page.fill("#filter", "whisper")
    assert page.text_content("#shown") == "1 of 4"
    page.click("#table tbody tr:not([hidden]) a")
    page.wait_for_selector("#first")
    assert page.text_content("h1") == "whisper" and page.faults == []
