"""The report in a real Chromium: no error, no request, every figure drawn, every control does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit.browser import SIZES, Page

from ailora_tools import render_report

EVERY = ["minilm", "smollm2", "rxnfp", "identical", "hostile", "whisper", "unet", "deep", "damaged", "one layer"]


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_is_drawn_without_a_fault(browser: Any, reports: dict[str, Path], name: str) -> None:
    width = list(SIZES)[EVERY.index(name) % 2]
    page = Page(browser, reports[name], width)
    title = page.title()
    page.draw_all()
    for box in page.query_selector_all(".figure"):
        if box.is_visible():
            marks = ".scatterlayer .lines path, .scatterlayer .point, .heatmaplayer image, .barlayer path"
            assert box.query_selector_all(marks), box.get_attribute("data-figure")
            assert all(text.text_content() for text in box.query_selector_all(".xtitle"))
            inside = box.bounding_box()
            assert inside["x"] >= 0 and inside["x"] + inside["width"] <= page.width
    assert page.evaluate("document.documentElement.scrollWidth") <= page.width
    assert page.title() == title and page.faults == []


IN_VIEW_IS_DRAWN = """() => [...document.querySelectorAll('.figure')].every(box => {
    const {top, bottom} = box.getBoundingClientRect();
    return !box.offsetParent || box.dataset.drawn || bottom <= 0 || top >= innerHeight;
})"""


def test_figures_are_drawn_by_scrolling_alone(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["minilm"])
    height = page.evaluate("document.documentElement.scrollHeight")
    for at in range(0, height, 400):
        page.evaluate(f"window.scrollTo({{top: {at}, behavior: 'instant'}})")
        page.wait_for_function(IN_VIEW_IS_DRAWN)
    assert page.evaluate("[...document.querySelectorAll('.figure')].every(box => box.dataset.drawn)")


def test_the_rank_slider_by_keyboard(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"])
    page.draw_all()
    assert page.text_content("#rank-value") == "8"
    before = page.text_content('[data-held="q"]')
    motion = page.text_content('[data-held="motion"]')
    page.focus("#rank")
    page.keyboard.press("ArrowRight")
    assert motion.endswith(" : 1") and page.text_content('[data-held="motion"]') != motion
    assert page.text_content("#rank-value") == "12" and page.text_content('[data-held="q"]') != before
    line = page.evaluate("document.querySelector('[data-energy] .live').layout.shapes[0].x0")
    rows = json.loads((reports["rxnfp"].parent / "analysis.json").read_text())["matrices"]
    at = rows[0]["cuts"]["ranks"].index(12)
    values = sorted(row["cuts"]["top_energy"][at] for row in rows if row["role"] == "q")
    assert line == 12 and page.text_content('[data-held="q"]') == f"{50 * (values[5] + values[6]):.3g} %"
    assert page.faults == []


def test_the_menu_of_metrics_and_a_click_on_a_cell(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"])
    page.draw_all()
    read = "JSON.stringify(document.querySelector('[data-figure=\"map-weights\"] .live').data[0].text)"
    before = page.evaluate(read)
    page.select_option('select[data-map="weights"]', "frobenius_norm")
    page.wait_for_function(f"() => {read} !== {json.dumps(before)}")
    assert "‖W‖F" in page.text_content('[data-meaning="weights"]')
    box = page.query_selector('[data-figure="map-weights"]')
    box.scroll_into_view_if_needed()
    plot = box.query_selector(".nsewdrag").bounding_box()
    page.mouse.move(plot["x"] + plot["width"] * 2.5 / 12, plot["y"] + plot["height"] * 0.75)
    page.wait_for_selector(".hovertext")
    page.mouse.click(plot["x"] + plot["width"] * 2.5 / 12, plot["y"] + plot["height"] * 0.75)
    page.wait_for_selector("#layer-page[open]")
    assert page.text_content("#layer-page h2") == "Layer 2"
    page.click("#layer-page [data-row]")
    assert page.text_content("tr.chosen th") == "WV 2" and page.faults == []


def test_the_table_sorts_both_ways(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"])
    button = page.query_selector("#table thead th:nth-child(2) button")
    read = "[...document.querySelectorAll('#table tbody tr')].map(row => Number(row.cells[1].dataset.value))"
    button.focus()
    page.keyboard.press("Enter")
    up = page.evaluate(read)
    assert up == sorted(up) and page.get_attribute("#table thead th:nth-child(2)", "aria-sort") == "ascending"
    button.click()
    assert page.evaluate(read) == sorted(up, reverse=True)
    page.click("#table thead th:nth-child(1) button")
    assert page.text_content("#table tbody tr th") == "WQ 0"


def test_one_fine_tune_at_a_time(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"])
    page.draw_all()
    assert page.is_visible('[data-figure="relative-0"]') and not page.is_visible('[data-figure="relative-1"]')
    page.select_option("#tuned", "1")
    page.draw_all()
    assert page.is_visible('[data-figure="relative-1"] .scatterlayer') and not page.is_visible(
        '[data-figure="relative-0"]'
    )
    assert page.faults == []


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_downloads_hold_the_data(browser: Any, reports: dict[str, Path], kind: str) -> None:
    page = Page(browser, reports["minilm"])
    with page.expect_download() as waiting:
        page.click(f"#{kind}")
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert waiting.value.suggested_filename == f"minilm.{kind}"
    folder = reports["minilm"].parent
    if kind == "csv":
        assert text == (folder / "metrics.csv").read_text(encoding="utf-8")
    else:
        assert json.loads(text) == json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    assert page.faults == []


def test_dark_and_light(browser: Any, reports: dict[str, Path]) -> None:
    def luminance(page: Page) -> tuple[float, float]:
        read = "(css) => getComputedStyle(document.body)[css].match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
        return page.evaluate(read, "backgroundColor"), page.evaluate(read, "color")

    page = Page(browser, reports["minilm"], scheme="dark")
    page.draw_all()
    background, ink = luminance(page)
    assert background < 150 < ink
    font = "document.querySelector('.figure .live').layout.font.color"
    before = page.evaluate(font)
    page.click("#theme")
    background, ink = luminance(page)
    assert background > 600 > ink and page.evaluate(font) != before and page.faults == []


def test_80_layers_are_drawn_as_they_come_into_view(browser: Any, reports: dict[str, Path]) -> None:
    """What makes scrolling smooth: nothing far below is drawn at first, and the page has few nodes."""
    page = Page(browser, reports["deep"])
    page.wait_for_selector(".figure[data-drawn]")
    page.wait_for_timeout(300)
    drawn = "[...document.querySelectorAll('.figure')].map(box => Boolean(box.dataset.drawn))"
    assert not all(page.evaluate(drawn))
    page.draw_all()
    assert all(page.evaluate(drawn)) and page.evaluate("document.querySelectorAll('*').length") < 20_000
    assert page.faults == []


def test_suggested_modules_are_drawn_where_they_were_asked_for(browser: Any, reports: dict[str, Path]) -> None:
    for name in ("rxnfp", "minilm"):
        page = Page(browser, reports[name], "phone")
        targets = json.loads((reports[name].parent / "analysis.json").read_text())["targets"]
        chosen = targets["target_modules"]
        live = "document.querySelector('[data-figure=\"targets\"] .live')"
        page.evaluate("page.draw(document.querySelector('[data-figure=\"targets\"]'))")
        page.wait_for_function(f"() => {live}.data")
        marks = page.evaluate(f"{live}.data.filter(one => one.mode === 'markers').flatMap(one => one.x).length")
        level = page.evaluate(f"{live}.layout.shapes[0].y0")
        scores = [row[targets["basis"]] for row in targets["modules"]]
        assert marks == len(chosen), name
        assert (max(scores) < level) if targets["basis"] == "condition" else (min(scores) > level)
        told = [row.text_content() for row in page.query_selector_all(".chosen-modules tbody td:last-child")]
        assert told == [row["module"] for row in targets["modules"]] and sorted(told) == chosen
        copied = page.get_attribute('#targets button[data-copy^="target_modules="]', "data-copy")
        assert json.loads(copied.partition("=")[2]) == chosen
        assert page.evaluate("document.documentElement.scrollWidth") <= page.width and page.faults == []
    assert "said to overwrite least" in page.text_content("#targets .lead"), "the reason, and what it does not say"
    assert "No measurement here" in page.text_content("#targets .lead")
    assert Page(browser, reports["damaged"]).query_selector("#targets") is None


@pytest.mark.parametrize("roles", ["qv", "q"])
def test_a_page_of_several_stacks_has_colours_that_are_colours(
    reports: dict[str, Path], tmp_path: Path, roles: str
) -> None:
    """Also where a stack has no W^V to set against its W^Q."""
    document = json.loads(reports["rxnfp"].with_name("analysis.json").read_text())
    for row in document["matrices"]:
        row["stack"] = "decoder" if row["layer"] == 0 and row["role"] in roles else row["stack"]
    (tmp_path / "analysis.json").write_text(json.dumps(document))
    page = render_report(tmp_path / "analysis.json", tmp_path / "page.html").read_text()
    assert 'stroke="[' not in page and 'stroke="None' not in page
