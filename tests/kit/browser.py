"""An open report in a real Chromium that notes everything that should not happen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
_STILL = """async () => {
  for (let at = null; at !== scrollY; ) {
    at = scrollY;
    for (let frames = 0; frames < 3; frames++) await new Promise(requestAnimationFrame);
  }
}"""


class Page:
    """An open report that collects everything that should not happen."""

    def __init__(
        self, browser: Any, report: Path, size: str = "desktop", scheme: str = "light", hash: str = "", **more: Any
    ) -> None:
        self.width, self.height = SIZES[size]
        phone = {"has_touch": True, "is_mobile": True} if size == "phone" else {}
        viewport = {"width": self.width, "height": self.height}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True, **phone, **more)
        self.page = context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url))
        self.page.goto(report.as_uri() + hash)
        if more.get("java_script_enabled", True):
            self.page.evaluate("page.ready")

    def _request(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.faults.append(url)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def draw_all(self) -> None:
        self.page.evaluate("drawAll()")
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.figure')].every(box => !box.offsetParent || box.dataset.drawn)"
        )

    def top(self, selector: str) -> float:
        """Of an element, in the window."""
        return float(self.page.evaluate("(css) => document.querySelector(css).getBoundingClientRect().top", selector))

    def swipe(self, x: float, y: float, up: int) -> None:
        """A finger that moves up by `up` pixels, until the page has followed it and stands still."""
        session = self.page.context.new_cdp_session(self.page)

        def touch(kind: str, *points: dict[str, float]) -> None:
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

        before = self.page.evaluate("scrollY")
        touch("touchStart", {"x": x, "y": y})
        for step in range(1, 11):
            touch("touchMove", {"x": x, "y": y - up * step / 10})
        touch("touchEnd")
        self.page.wait_for_function("(least) => scrollY > least", arg=before + up / 2)
        self.page.evaluate(_STILL)
