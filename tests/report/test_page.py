"""The report in a real Chromium: no error, no request, every figure drawn, every control does what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import write_checkpoint
from kit.real_models import minilm, rxnfp, smollm2

from ailora_tools import analyze

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    pair = rxnfp(root / "rxnfp")
    hostile = '</script><img src=x onerror="document.title=1">'
    tensors = {f"{hostile}.{layer}.{role}_proj.weight": torch.randn(8, 8) for layer in range(4) for role in "qv"}
    sources = {
        "minilm": (minilm(root / "minilm"), {}),
        "smollm2": (smollm2(root / "smollm2"), {"heads": True}),
        "rxnfp": (pair / "base", {"against": [pair / "ft", pair / "ft_10k"], "heads": True, "suggest_ranks": 8}),
        "identical": (pair / "base", {"against": [pair / "base"]}),
        "hostile": (write_checkpoint(root / "<b>", tensors, model_type="odd"), {"rank": 2}),
    }
    return {
        name: analyze(model, output=root / "out" / name, **options).report  # type: ignore[arg-type]
        for name, (model, options) in sources.items()
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


class Page:
    """An open report that collects everything that should not happen."""

    def __init__(self, browser: Any, report: Path, width: str = "desktop", scheme: str = "light", **more: Any) -> None:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        context = browser.new_context(viewport=size, color_scheme=scheme, accept_downloads=True, **more)
        self.page = context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url))
        self.page.goto(report.as_uri())

    def _request(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.faults.append(url)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def draw_all(self) -> None:
        self.page.evaluate("drawAll()")
        self.page.wait_for_function(
            "[...document.querySelectorAll('.figure')].every(box => !box.offsetParent || box.dataset.drawn)"
        )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["minilm", "smollm2", "rxnfp", "identical", "hostile"])
def test_every_figure_is_drawn_without_a_fault(browser: Any, reports: dict[str, Path], name: str, width: str) -> None:
    page = Page(browser, reports[name], width)
    title = page.title()
    page.draw_all()
    for box in page.query_selector_all(".figure"):
        if box.is_visible():
            marks = ".scatterlayer .lines path, .scatterlayer .point, .heatmaplayer image, .barlayer path"
            assert box.query_selector_all(marks), box.get_attribute("data-figure")
            assert all(text.text_content() for text in box.query_selector_all(".xtitle"))
            inside = box.bounding_box()
            assert inside["x"] >= 0 and inside["x"] + inside["width"] <= WIDTHS[width][0]
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
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
    line = page.evaluate("document.querySelector('[data-energy]').layout.shapes[0].x0")
    rows = json.loads((reports["rxnfp"].parent / "analysis.json").read_text())["matrices"]
    at = rows[0]["cuts"]["ranks"].index(12)
    values = sorted(row["cuts"]["top_energy"][at] for row in rows if row["role"] == "q")
    assert line == 12 and page.text_content('[data-held="q"]') == f"{50 * (values[5] + values[6]):.3g} %"
    assert page.faults == []


def test_the_menu_of_metrics_and_a_click_on_a_cell(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"])
    page.draw_all()
    read = "JSON.stringify(document.querySelector('[data-figure=\"map-weights\"]').data[0].text)"
    before = page.evaluate(read)
    page.select_option('select[data-map="weights"]', "frobenius_norm")
    page.wait_for_function(f"{read} !== {json.dumps(before)}")
    assert "‖W‖_F" in page.text_content('[data-meaning="weights"]')
    box = page.query_selector('[data-figure="map-weights"]')
    box.scroll_into_view_if_needed()
    plot = box.query_selector(".nsewdrag").bounding_box()
    page.mouse.move(plot["x"] + plot["width"] * 2.5 / 12, plot["y"] + plot["height"] * 0.75)
    page.wait_for_selector(".hovertext")
    page.mouse.click(plot["x"] + plot["width"] * 2.5 / 12, plot["y"] + plot["height"] * 0.75)
    page.wait_for_selector("tr.chosen")
    assert page.text_content("tr.chosen td") == "WV 2" and page.faults == []


def test_the_table_sorts_both_ways(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"])
    button = page.query_selector("thead th:nth-child(2) button")
    read = "[...document.querySelectorAll('tbody tr')].map(row => Number(row.cells[1].dataset.value))"
    button.focus()
    page.keyboard.press("Enter")
    up = page.evaluate(read)
    assert up == sorted(up) and page.get_attribute("thead th:nth-child(2)", "aria-sort") == "ascending"
    button.click()
    assert page.evaluate(read) == sorted(up, reverse=True)
    page.click("thead th:nth-child(1) button")
    assert page.text_content("tbody tr td") == "WQ 0"


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
    font = "document.querySelector('.figure').layout.font.color"
    before = page.evaluate(font)
    page.click("#theme")
    background, ink = luminance(page)
    assert background > 600 > ink and page.evaluate(font) != before and page.faults == []


def test_print_shows_everything(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"])
    page.draw_all()
    pdf = page.pdf(format="A4")
    assert len(pdf) > 50_000 and page.faults == []


def test_it_reads_without_script(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"], java_script_enabled=False)
    assert "W^V changed more than W^Q".replace("^", "") in page.text_content("#findings")
    assert page.is_visible("noscript p") and page.is_visible("#table td")


def test_80_layers_are_drawn_as_they_come_into_view(browser: Any, tmp_path: Path) -> None:
    """What makes scrolling smooth: nothing far below is drawn at first, and the page has few nodes."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.layers.{layer}.self_attn.{name}.weight": torch.randn(rows, 256, generator=generator)
        for layer in range(80)
        for name, rows in (("q_proj", 256), ("v_proj", 32))
    }
    model = write_checkpoint(tmp_path / "m", tensors)
    page = Page(browser, analyze(model, output=tmp_path / "out").report)
    page.wait_for_selector(".figure[data-drawn]")
    page.wait_for_timeout(300)
    drawn = "[...document.querySelectorAll('.figure')].map(box => Boolean(box.dataset.drawn))"
    assert not all(page.evaluate(drawn))
    page.draw_all()
    assert all(page.evaluate(drawn)) and page.evaluate("document.querySelectorAll('*').length") < 20_000
    assert page.faults == []
