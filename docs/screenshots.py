"""The pictures of the documentation: the demo's report in a headless Chromium.

    make demo && python docs/screenshots.py

Writes ``docs/pictures/``: the replay with a worst decision (light), the page's head (dark), and a phone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "results" / "demo_report" / "report.html"
PICTURES = Path(__file__).resolve().parent / "pictures"


def opened(browser: Browser, width: int, height: int, scheme: str) -> Page:
    """The report in a window of that size."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(PAGE.as_uri())
    page.wait_for_selector("#replay canvas")
    page.wait_for_selector("#lights svg .mark")
    return page


def main() -> None:
    """Take the three pictures."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = opened(browser, 1180, 1010, "light")
        page.locator("#replay .worst button").first.click()
        page.locator("#replay .futures input").fill("25")
        page.locator("#replay .sides").first.scroll_into_view_if_needed()
        page.evaluate("document.querySelector('#replay').scrollIntoView()")
        page.screenshot(path=PICTURES / "replay.png")
        page = opened(browser, 1180, 760, "dark")
        page.screenshot(path=PICTURES / "report-dark.png")
        page = opened(browser, 390, 844, "light")
        page.evaluate("document.querySelector('#lights').scrollIntoView()")
        page.screenshot(path=PICTURES / "report-phone.png")
        browser.close()


if __name__ == "__main__":
    main()
