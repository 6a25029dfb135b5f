"""A picture of a report, by Playwright and an installed Chromium.

python examples/screenshot.py reports/minilm/report.html minilm.png [--dark] [--phone] [--whole] [--hash layer-3-v]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

SIZES = {False: (1440, 900), True: (390, 844)}  # desktop, phone


def picture(
    report: Path, target: Path, *, phone: bool = False, dark: bool = False, whole: bool = False, hash: str = ""
) -> bool:
    """Draw all figures and take the first screen, or the whole page; False if there is no Chromium. `hash`: what stands
    in the address after "#", such as a section or a layer."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return False
    width, height = SIZES[phone]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=phone,
            is_mobile=phone, reduced_motion="reduce",
        )  # fmt: skip
        page.goto(f"{report.absolute().as_uri()}#{hash}")
        page.evaluate("drawAll()")
        page.wait_for_timeout(800)
        page.screenshot(path=target, full_page=whole)
        browser.close()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--hash", default="")
    asked = parser.parse_args()
    if not picture(**{"target" if name == "picture" else name: value for name, value in vars(asked).items()}):
        parser.error("no Chromium is installed")


if __name__ == "__main__":
    main()
