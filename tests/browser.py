"""Headless Chromium for tests of pages: Debian's browser, driven by Playwright, cut off from every network.

Every request other than the page's own file is refused and written down, so a test can claim that there were none.

The picture in the README is made by `python -m tests.browser demo-output/SCENE/report.html docs/demo.png`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def require_chromium() -> None:
    """Skip the test without a browser, but fail it where CI=true: there the browser is part of what is promised."""
    if CHROMIUM.exists():
        return
    message = f"no browser at {CHROMIUM} (Debian: apt-get install chromium)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@dataclass
class OpenPage:
    """A page that is open, with everything it asked for and complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A running Chromium; closed at the end."""
    require_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield running
        finally:
            running.close()


@contextmanager
def opened(running: Any, path: Path, width: int = 1280, height: int = 900, **options: Any) -> Iterator[OpenPage]:
    """The file `path` in a fresh offline context (`options` go to Playwright's new_context)."""
    context = running.new_context(viewport={"width": width, "height": height}, offline=True, **options)
    try:
        context.set_default_timeout(90_000)  # milliseconds; a machine busy with other tests is not a failure
        result = OpenPage(context.new_page())
        own = path.resolve().as_uri()

        def screen(route: Any) -> None:
            address = route.request.url
            if address == own:
                route.continue_()
            else:
                result.requests.append(address)
                route.abort()

        result.page.route("**/*", screen)
        result.page.on(
            "request",
            lambda request: (
                None if request.url == own or request.url.startswith("data:") else result.requests.append(request.url)
            ),
        )
        result.page.on(
            "console", lambda message: result.complaints.append(message.text) if message.type == "error" else None
        )
        result.page.on("pageerror", lambda error: result.complaints.append(str(error)))
        result.page.goto(own)
        yield result
    finally:
        context.close()


def portrait(report: Path, png: Path, notches: int = 4) -> None:
    """The viewer of a report, zoomed in a little, one object chosen, as a PNG of 128 colours (under 400 kB)."""
    from PIL import Image

    with browser() as running, opened(running, report, 1280, 1000) as screen:
        page = screen.page
        page.wait_for_selector("canvas[data-view]")
        page.locator("#canvas").focus()
        page.keyboard.press("n")
        for _ in range(notches):
            page.keyboard.press("+")
        page.wait_for_timeout(1000)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.screenshot(path=str(png))
    with Image.open(png) as picture:
        picture.convert("RGB").quantize(128).save(png, optimize=True)


if __name__ == "__main__":
    portrait(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
