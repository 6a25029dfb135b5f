"""What a reader does with a page: takes the answer in at once, scrolls with a finger, prints, follows links, comes back
to what was chosen, takes figures and rows along, reads without scripts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from kit.browser import SIZES, Page

from ailora_tools.report.packed import unpacked

BOTTOM = "(css) => Math.max(...[...document.querySelectorAll(css)].map((one) => one.getBoundingClientRect().bottom))"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["minilm", "rxnfp", "deep"])
def test_picture_answer_numbers_and_next_step_are_on_the_first_screen(
    browser: Any, reports: dict[str, Path], name: str, size: str
) -> None:
    page = Page(browser, reports[name], size, java_script_enabled=False)  # before any script has run, that is
    for part in (".answer", "#first .figure svg", "#first .keys", "#first .next div:first-child"):
        assert 0 < page.evaluate(BOTTOM, part) <= page.height, part
    assert len(page.query_selector_all("#first .keys > div")) == 4
    assert "ailora-tools init" in page.text_content("#first .next")


def test_a_swipe_that_starts_on_a_figure_scrolls_the_page(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["minilm"], "phone")
    page.draw_all()
    for name in ("spectra-q", "map-weights", "energy-v"):
        css = f'[data-figure="{name}"]'
        page.evaluate(
            "(css) => document.querySelector(css).scrollIntoView({block: 'center', behavior: 'instant'})", css
        )
        box, axis = (
            page.query_selector(css).bounding_box(),
            f"document.querySelector('{css} .live')._fullLayout.yaxis.range",
        )
        before, range_before = page.evaluate("scrollY"), page.evaluate(axis)
        page.swipe(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, 200)
        assert page.evaluate("scrollY") > before + 100 and page.evaluate(axis) == range_before, name
    assert page.faults == []


def test_zoom_has_a_way_back(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["minilm"])
    page.draw_all()
    axis = "document.querySelector('[data-figure=spectra-q] .live')._fullLayout.xaxis.range.map(Number)"
    low, high = page.evaluate(axis)
    page.click("#fig-spectra-q [data-act='+']")
    page.wait_for_function(f"() => {axis}[0] > {low} + 1 && {axis}[1] < {high} - 1")
    page.click("#fig-spectra-q [data-act=reset]")
    page.wait_for_function(f"() => Math.abs({axis}[1] - {high}) < 1")


IN_PAPER = """() => [...document.querySelectorAll('.figure, .card, .findings li, #table table, pre, .keys')]
    .filter((one) => one.offsetParent && one.getBoundingClientRect().right > innerWidth + 1)
    .map((one) => one.outerHTML)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_holds_everything_in_black_on_white(browser: Any, reports: dict[str, Path], scheme: str) -> None:
    page = Page(browser, reports["rxnfp"], scheme=scheme, hash="#&theme=dark" if scheme == "dark" else "")
    page.draw_all()
    page.select_option('select[data-map="weights"]', "frobenius_norm")
    assert len(page.pdf(format="A4")) > 50_000
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 990})  # A4 inside its margins, in CSS pixels
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(IN_PAPER) == [] and page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 32, 36)"
    assert page.is_visible("#definitions dl") and not page.is_visible(".live")
    assert page.is_visible('[data-figure="map-weights"] .still svg path') and page.is_visible('[data-name="weights"]')
    assert page.text_content('[data-name="weights"]').startswith("Frobenius norm")
    assert page.faults == []


def test_every_link_lands_on_its_section(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"], reduced_motion="reduce")
    for link in page.query_selector_all("nav a"):
        link.evaluate("(one) => one.click()")
        page.wait_for_timeout(150)  # figures that come into view are drawn, and must not move anything
        anchor = link.get_attribute("href")
        end = page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 2")
        assert 0 <= page.top(anchor) <= 120 or end, anchor
        assert page.evaluate("location.hash").startswith(anchor)
    page = Page(browser, reports["rxnfp"], hash="#fig-spectra-v", reduced_motion="reduce")
    assert 0 <= page.top("#fig-spectra-v") <= 120 and page.faults == []


def test_the_address_keeps_what_was_chosen(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"])
    page.select_option('select[data-map="weights"]', "stable_rank_share")
    page.select_option("#tuned", "1")
    page.fill("#layers", "3-5")
    page.click("#theme")
    page.focus("#rank")
    page.keyboard.press("ArrowRight")
    again = Page(browser, reports["rxnfp"], hash=page.evaluate("location.hash"))
    assert again.input_value('select[data-map="weights"]') == "stable_rank_share"
    assert again.input_value("#tuned") == "1" and again.input_value("#layers") == "3-5"
    assert again.text_content("#rank-value") == "12" and again.get_attribute("html", "data-theme") == "dark"
    assert again.faults == []


def test_one_layer_is_lit_in_every_figure_and_has_a_page_of_its_own(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["deep"], hash="#layer-17-v")
    page.wait_for_selector("#layer-page[open] .live-own .scatterlayer path")
    assert page.text_content("#layer-page h2") == "Layer 17"
    rows = json.loads((reports["deep"].parent / "analysis.json").read_text())["matrices"]
    alpha = next(row["metrics"]["frobenius_norm"] for row in rows if row["label"] == "v 17")
    assert f"{alpha:.3g}" in page.text_content("#layer-page .metrics")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#layer-page h2") == "Layer 18" and page.evaluate("location.hash").startswith(
        "#layer-18-v"
    )
    page.keyboard.press("Escape")
    page.draw_all()
    faint = """(name) => document.querySelector(`[data-figure="${name}"] .live`).data
        .filter((trace) => trace.meta && trace.opacity !== 0.12).map((trace) => trace.meta.layer)"""
    for name in ("spectra-q", "spectra-v", "energy-q", "energy-v"):
        assert page.evaluate(faint, name) == [18], name
    for name in ("map-weights", "first", "elements-q", "motion-layers"):
        shapes = page.evaluate("(name) => document.querySelector(`[data-figure=${name}] .live`).layout.shapes", name)
        assert any(shape["type"] == "rect" and (shape["x0"], shape["x1"]) == (17.5, 18.5) for shape in shapes), name
    page.fill("#layers", "")
    page.draw_all()
    assert page.evaluate(faint, "spectra-q") == list(range(80)) and page.faults == []


def test_the_map_by_keyboard(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["minilm"])
    page.focus('[data-figure="map-weights"]')
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert re.fullmatch(r" ?v, layer 2: [\d.]+", page.text_content("output.sr"))
    page.keyboard.press("Enter")
    page.wait_for_selector("#layer-page[open]")
    assert page.text_content("#layer-page h2") == "Layer 2" and page.faults == []


@pytest.mark.parametrize(
    ("name", "stacks"), [("whisper", {"encoder", "decoder", "decoder cross"}), ("unet", {"self", "cross"})]
)
def test_every_stack_is_told_apart_in_every_figure(reports: dict[str, Path], name: str, stacks: set[str]) -> None:
    data = unpacked(reports[name].read_text(encoding="utf-8"))
    groups: dict[str, set[str]] = {}
    for figure, content in data["figures"].items():
        of = {trace["meta"]["stack"] for trace in content["data"] if isinstance(trace.get("meta"), dict)}
        assert len(of) <= 1, figure  # lines of layers stand in a figure of their stack
        groups.setdefault(re.sub(r"-\d$", "", figure), set()).update(of)
    for group in ("spectra-q", "spectra-v", "energy-q", "energy-v"):
        assert groups[group] == stacks, group
    for group in ("elements-q", "elements-v", *(("heads-q-effective_rank",) if name == "whisper" else ())):
        assert len([figure for figure in data["figures"] if re.sub(r"-\d$", "", figure) == group]) == len(stacks), group
    for figure in ("first", "motion-layers"):
        lines = [trace for trace in data["figures"][figure]["data"] if trace["line"]["color"] != "#888"]
        assert len({(trace["line"]["dash"], trace["line"]["color"]) for trace in lines}) == 2 * len(stacks), figure
        assert all(any(trace["name"].endswith(stack) for trace in lines) for stack in stacks), figure
    assert {stack for stack, _ in data["figures"]["map-weights"]["data"][0]["meta"]} == stacks
    for stack in stacks:
        assert f", {stack}</h3>" in reports[name].read_text(encoding="utf-8")


def test_blocks_of_a_unet_are_numbered_through(reports: dict[str, Path]) -> None:
    rows = unpacked(reports["unet"].read_text(encoding="utf-8"))["rows"]
    own = [row for row in rows if row["role"] == "q" and row["stack"] == "cross"]
    assert [row["layer"] for row in own] == list(range(7))
    starts = [row["tensor"].split(".")[0] for row in own]
    assert starts == sorted(starts) and {*starts} == {"down_blocks", "mid_block", "up_blocks"}
    assert all(".attn2." in row["tensor"] for row in own)


def test_figures_and_rows_to_take_along(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"], permissions=["clipboard-read", "clipboard-write"])
    page.draw_all()
    for kind, start in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with page.expect_download() as waiting:
            page.click(f"#fig-spectra-v [data-act={kind}]")
        assert Path(waiting.value.path()).read_bytes().startswith(start)
        assert waiting.value.suggested_filename == f"base-spectra-v.{kind}"
    page.click("#fig-relative-0 [data-act=numbers]")
    assert len(page.query_selector_all("#fig-relative-0 .numbers tr")) == 3
    page.fill("#filter", "v, 2-4")
    assert page.text_content("#shown") == "3 of 24"
    page.evaluate("document.querySelectorAll('[data-column]').forEach((box, at) => { if (at) box.click(); })")
    page.click("#copy")
    lines = page.evaluate("navigator.clipboard.readText()").split("\n")
    assert [line.split("\t")[0] for line in lines] == ["matrix", "WV 2", "WV 3", "WV 4"]
    assert lines[0].split("\t")[1].startswith("relative change") and float(lines[1].split("\t")[1]) > 0
    assert page.faults == []


def test_it_reads_without_script(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["rxnfp"], java_script_enabled=False)
    assert "WV changed more than WQ" in page.text_content("#findings")
    assert page.is_visible("noscript p") and page.is_visible("#table td") and not page.is_visible("#theme")
    for box in page.query_selector_all(".figure"):
        if box.is_visible():
            assert box.query_selector(".plot > svg path:not(.grid-lines)").is_visible()
            assert box.query_selector(".still .xt").text_content()


CONTRAST = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (one) => { for (; one; one = one.parentElement) { const c = getComputedStyle(one).backgroundColor;
        if (!/, 0\\)|transparent/.test(c) && /^rgb/.test(c)) return parse(c); } return [255, 255, 255]; };
    const found = [];
    const texts = 'h1, h2, p, li b, .rest, .kind, .role, td, th, label, button, summary, nav a, code, .still span';
    for (const one of document.querySelectorAll(texts)) {
        if (!one.offsetParent || !one.textContent.trim()) continue;
        const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.push(one.outerHTML);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(browser: Any, reports: dict[str, Path], scheme: str) -> None:
    page = Page(browser, reports["damaged"], scheme=scheme)
    assert page.evaluate(CONTRAST) == [] and page.faults == []


def test_a_matrix_that_was_left_out_is_named_once_and_marked(browser: Any, reports: dict[str, Path]) -> None:
    page = Page(browser, reports["damaged"])
    text = page.text_content("#findings")
    assert text.count("could not be analysed") + text.count("Left out") == 1
    assert page.text_content('[data-figure="map-weights"] .gone') == "✕"


def test_one_layer_is_not_put_to_a_sign_test(reports: dict[str, Path]) -> None:
    document = json.loads((reports["one layer"].parent / "analysis.json").read_text())
    texts = " ".join(finding["text"] for finding in document["findings"])
    assert "nothing to test" in texts and "sign test" not in texts and "1 of 1" not in texts
