"""A picture of a report, by Playwright and an installed Chromium.

python examples/screenshot.py reports/minilm/report.html minilm.png [--dark] [--height 1500]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--height", type=int, default=1500)
    asked = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 1200, "height": asked.height}, color_scheme="dark" if asked.dark else "light"
        )
        page.goto(asked.report.absolute().as_uri())
        page.evaluate("drawAll()")
        page.wait_for_timeout(500)
        page.screenshot(path=asked.picture)
        browser.close()


if __name__ == "__main__":
    main()
