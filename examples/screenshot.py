"""A picture of a report, by Playwright and an installed Chromium.

python examples/screenshot.py reports/minilm/report.html minilm.png [--dark] [--height 1500 | --whole]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright


def picture(report: Path, target: Path, height: int = 1500, dark: bool = False, whole: bool = False) -> bool:
    """Draw all figures and take the upper `height` pixels, or the whole page, at a width of 1200; False if there is no
    Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return False
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": height}, color_scheme="dark" if dark else "light")
        page.goto(report.absolute().as_uri())
        page.evaluate("drawAll()")
        page.wait_for_timeout(500)
        page.screenshot(path=target, full_page=whole)
        browser.close()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--height", type=int, default=1500)
    parser.add_argument("--whole", action="store_true")
    asked = parser.parse_args()
    if not picture(asked.report, asked.picture, asked.height, asked.dark, asked.whole):
        parser.error("no Chromium is installed")


if __name__ == "__main__":
    main()
